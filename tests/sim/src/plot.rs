//! A picture of what became of one service.

use std::path::Path;

use plotters::prelude::*;

use crate::promise::Kept;

const SIZE: (u32, u32) = (960, 480);

/// Draws, hour by hour, how much of it the service was there, and its replicas below, as SVG.
///
/// # Errors
/// The file cannot be written.
pub fn draw(path: &Path, kept: &Kept) -> Result<(), String> {
    try_draw(path, kept).map_err(|error| format!("{}: {error}", path.display()))
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn try_draw(path: &Path, kept: &Kept) -> Result<(), String> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(told)?;
    let (above, below) = area.split_vertically(SIZE.1 / 2);
    let days = kept.hours.len() as f64 / 24.0;
    let day = |hour: usize| hour as f64 / 24.0;
    let share = kept.hours.iter().zip(0..).map(|((up, _), h)| (day(h), f64::from(*up) / 10_000.0));
    let caption = format!("{}: percent of each hour", kept.name);
    line(&above, &caption, days, 100.0, share, &BLUE)?;
    let count = kept.hours.iter().zip(0..).map(|((_, n), h)| (day(h), f64::from(*n) / 1_000.0));
    let most = count.clone().map(|(_, count)| count).fold(1.0, f64::max);
    line(&below, "replicas, by day", days, most, count, &RED)?;
    area.present().map_err(told)?;
    Ok(())
}

fn line(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    caption: &str,
    days: f64,
    most: f64,
    points: impl Iterator<Item = (f64, f64)>,
    color: &RGBColor,
) -> Result<(), String> {
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(24)
        .y_label_area_size(40)
        .build_cartesian_2d(0.0..days.max(0.1), 0.0..most * 1.05)
        .map_err(told)?;
    chart.configure_mesh().disable_mesh().draw().map_err(told)?;
    chart.draw_series(LineSeries::new(points, color)).map_err(told)?;
    Ok(())
}
