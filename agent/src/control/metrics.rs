//! Counters and gauges as Prometheus reads them.

use std::fmt::Write;

use super::shape::FramesByKind;
use dugnad_kernel::map::Map;

/// Values by name. A name may be any short text; what Prometheus does not allow becomes `_`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    /// Only grow while the agent runs.
    pub(crate) counters: Vec<(&'static str, u64)>,
    pub(crate) gauges: Vec<(&'static str, u64)>,
    /// Become `dugnad_frames_total` with a direction and a kind.
    pub(crate) frames: FramesByKind,
}

impl Metrics {
    /// The text format, version 0.0.4, sorted; equal names are added up.
    pub(super) fn text(&self) -> String {
        let mut all: Map<String, (&str, u64)> = Map::new();
        let kinds = [(&self.counters, "counter", "_total"), (&self.gauges, "gauge", "")];
        for (values, kind, suffix) in kinds {
            for (name, value) in values {
                let plain =
                    |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
                let name: String = name.chars().map(plain).collect();
                let suffix = if name.ends_with("_total") { "" } else { suffix };
                let entry = all.entry(format!("dugnad_{name}{suffix}")).or_insert((kind, 0));
                entry.1 = entry.1.saturating_add(*value);
            }
        }
        let mut text = all.iter().fold(String::new(), |mut text, (name, (kind, value))| {
            // Writing into a String cannot fail.
            let _: Result<(), std::fmt::Error> =
                writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
            text
        });
        let (received, sent) = &self.frames;
        if !received.is_empty() || !sent.is_empty() {
            text.push_str("# TYPE dugnad_frames_total counter\n");
        }
        for (direction, kinds) in [("in", received), ("out", sent)] {
            for (kind, count) in kinds {
                let _: Result<(), std::fmt::Error> = writeln!(
                    text,
                    "dugnad_frames_total{{direction=\"{direction}\",kind=\"{kind}\"}} {count}"
                );
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_fit_and_equal_ones_added() {
        let metrics = Metrics {
            counters: vec![
                ("dropped: wire version", 2),
                ("dropped wire version", 0),
                ("retries", 1),
            ],
            gauges: vec![("memory_bytes", 7), ("dropped  wire version", 3)],
            frames: ([("ping", 4)].into(), [("pong", 5)].into()),
        };
        assert_eq!(
            metrics.text(),
            "# TYPE dugnad_dropped__wire_version gauge\ndugnad_dropped__wire_version 3\n\
             # TYPE dugnad_dropped__wire_version_total counter\n\
             dugnad_dropped__wire_version_total 2\n\
             # TYPE dugnad_dropped_wire_version_total counter\n\
             dugnad_dropped_wire_version_total 0\n\
             # TYPE dugnad_memory_bytes gauge\ndugnad_memory_bytes 7\n\
             # TYPE dugnad_retries_total counter\ndugnad_retries_total 1\n\
             # TYPE dugnad_frames_total counter\n\
             dugnad_frames_total{direction=\"in\",kind=\"ping\"} 4\n\
             dugnad_frames_total{direction=\"out\",kind=\"pong\"} 5\n"
        );
    }
}
