//! Tables for people: columns padded to what is in them, nothing more.

pub(super) use crate::text::plain;

use std::fmt::Write;

/// Rows of cells under a head. Cells come from other machines too: what could steer a terminal
/// is replaced.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned).to_vec()] }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| plain(&cell)).to_vec());
    }

    /// Two spaces between columns, none at the end of a line; the head bold if asked for.
    pub(super) fn text(&self, bold: bool) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let widest = |column: usize| self.rows.iter().map(|row| width(&row[column])).max();
        let widths: Vec<_> = (0..columns).map(|column| widest(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (cell, wide) in row.iter().zip(&widths) {
                let padding = " ".repeat(wide - width(cell) + 2);
                line.push_str(cell);
                line.push_str(&padding);
            }
            let line = line.trim_end();
            // Writing into a String cannot fail.
            let _: Result<(), std::fmt::Error> = match number {
                0 if bold => writeln!(text, "\x1b[1m{line}\x1b[0m"),
                _ => writeln!(text, "{line}"),
            };
        }
        text
    }
}

/// Columns a text takes in a terminal: combining marks none, East Asian wide ones and emoji two.
/// The ranges are the large blocks, not the whole standard: a wrong guess costs a crooked line.
pub(super) fn width(text: &str) -> usize {
    text.chars()
        .map(|c| match u32::from(c) {
            0x300..=0x36f | 0x200b..=0x200f | 0x20d0..=0x20ff | 0xfe00..=0xfe0f => 0,
            0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff => 2,
            0xfe30..=0xfe6f | 0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1faff => 2,
            0x20000..=0x3fffd => 2,
            _ => 1,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_the_script() {
        let mut table = Table::new(["NODE", "STATE"]);
        for name in ["attic", "kjøkken", "台所", "cafe\u{301}"] {
            table.row([name.to_owned(), "alive".to_owned()]);
        }
        table.row(["x".to_owned(), String::new()]);
        assert_eq!(
            table.text(false),
            "NODE     STATE\n\
             attic    alive\n\
             kjøkken  alive\n\
             台所     alive\n\
             cafe\u{301}     alive\n\
             x\n"
        );
        assert!(table.text(true).starts_with("\x1b[1mNODE     STATE\x1b[0m\n"));
    }

    #[test]
    fn cells_cannot_steer_the_terminal() {
        let mut table = Table::new(["A"]);
        table.row(["\x1b[2Jx\n".to_owned()]);
        assert_eq!(table.text(false), "A\n?[2Jx?\n");
    }
}
