//! How busy a replica is, for a service whose number of replicas follows that.

use std::time::{Duration, Instant};

use dugnad_resource::execute::{ReplicaId, Report, Run};
use dugnad_resource::spec::{Load, Measure, Scale, Want};
use smol::Timer;

use super::Shared;
use super::running::Running;

/// The time a report is about.
const WINDOW: Duration = Duration::from_millis(Load::WINDOW_MS as u64);

/// Reports for as long as it is polled; it never ends.
pub(super) async fn watch<T>(shared: &Shared, id: ReplicaId, run: &Run, running: &Running) -> T {
    if !matches!(run.spec.want, Want::Load(Scale { on: Measure::Cpu(_), .. })) {
        return std::future::pending().await;
    }
    let (mut before, mut at) = (running.cpu_us(), Instant::now());
    loop {
        Timer::after(WINDOW).await;
        let (used, now) = (running.cpu_us(), Instant::now());
        // Of a process that ended nothing is left to be counted.
        let more = used.saturating_sub(before);
        let took = now.duration_since(at).as_micros().max(1);
        (before, at) = (used, now);
        let cpu = u32::try_from(u128::from(more) * 1_000 / took).unwrap_or(u32::MAX);
        let load = Load { cpu, ..Load::default() };
        if !load.is_nothing() {
            shared.report(Report::Load { id, load }).await;
        }
    }
}
