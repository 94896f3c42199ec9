//! What conditions may ask of a node: names and kinds (PROTOCOL.md 9.1). [`crate::describe`] says
//! the values.

use crate::condition::{Attribute, Kind};

/// Attributes of a node, in the order in which they are shown.
pub const NODE: [Attribute<'static>; 24] = [
    of("name", Kind::Text),
    of("node", Kind::Text),
    of("zone", Kind::Text),
    of("tags", Kind::Words),
    of("arch", Kind::Text),
    of("features", Kind::Words),
    of("cores", Kind::Count),
    of("speed", Kind::Count),
    of("ram", Kind::Bytes),
    of("memory", Kind::Bytes),
    of("memory_given", Kind::Bytes),
    of("cpu", Kind::Cpu),
    of("cpu_given", Kind::Cpu),
    of("disk", Kind::Bytes),
    of("disk_given", Kind::Bytes),
    of("processes", Kind::Count),
    of("uplink", Kind::Bytes),
    of("load", Kind::Share),
    of("up", Kind::Share),
    of("session", Kind::Seconds),
    of("uptime", Kind::Seconds),
    of("replicas", Kind::Count),
    of("work", Kind::Text),
    of("programs", Kind::Words),
];

const fn of(name: &'static str, kind: Kind) -> Attribute<'static> {
    Attribute { name, kind }
}
