//! Breadth-first search through everything that may happen in a [`World`], so that what goes wrong
//! first is told with as few steps as possible.

use std::collections::{HashSet, VecDeque};
use std::fmt::{self, Write as _};

use crate::model::{Action, Bounds, World};
use crate::words::Ops;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub states: usize,
    pub steps: usize,
    /// Steps to the state that is farthest from the beginning.
    pub depth: usize,
    /// States with nothing under way, from each of which the ring was seen to become ideal.
    pub quiet: usize,
    /// States in which an operation waits for the end of its lease, though nothing failed. There
    /// should be none; those there are begin with a predecessor that asks the leaver for itself and
    /// is shown its heir, before the heir tells it: then it does not answer the heir.
    pub stuck: usize,
    /// States that were not followed: more messages on a link than is allowed.
    pub beyond: usize,
    /// Not everything was looked at: there are more states than the limit.
    pub cut: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, steps, depth, quiet, stuck, beyond, cut } = self;
        write!(f, "{states} states by {steps} steps, up to {depth} deep, {quiet} quiet")?;
        if *stuck > 0 {
            write!(f, ", {stuck} that wait for a lease")?;
        }
        if *beyond > 0 {
            write!(f, ", {beyond} with too much on a link")?;
        }
        if *cut { write!(f, ", and there are more") } else { Ok(()) }
    }
}

/// How a state was reached for the first time.
struct Reached {
    from: u32,
    by: Action,
    depth: u32,
}

/// Looks at all states, `limit` at most.
///
/// # Errors
/// What goes wrong, and the shortest way there.
pub fn explore(bounds: Bounds, limit: usize) -> Result<Report, String> {
    let start = World::new(bounds)?;
    let mut report = Report { states: 1, ..Report::default() };
    let mut seen = HashSet::from([start.print()]);
    let mut reached: Vec<Reached> = Vec::new();
    // Number 0 is the beginning, the others are one more than their place in `reached`.
    let mut frontier = VecDeque::from([(0, start.clone())]);
    while let Some((number, world)) = frontier.pop_front() {
        let depth = depth(&reached, number) + 1;
        for action in world.actions() {
            report.steps += 1;
            let mut next = world.clone();
            next.apply(action);
            if !seen.insert(next.print()) {
                continue;
            }
            reached.push(Reached { from: number, by: action, depth });
            let wrong =
                next.check().and_then(|()| next.check_step(&world, action)).and_then(|()| {
                    if !next.quiet() {
                        return Ok(());
                    }
                    report.quiet += 1;
                    next.clone()
                        .settle(&mut |_, _| {})
                        .map_err(|wrong| format!("Z7: never ideal: {wrong}"))
                });
            let last = u32::try_from(reached.len()).unwrap_or(u32::MAX);
            if let Err(wrong) = wrong {
                let on = wrong.starts_with("Z7");
                return Err(format!("{wrong}\n{}", tell(start, &way(&reached, last), on)));
            }
            report.states += 1;
            report.stuck += usize::from(next.stuck());
            report.depth = report.depth.max(depth as usize);
            if report.states >= limit {
                report.cut = true;
                return Ok(report);
            }
            if next.within() {
                frontier.push_back((last, next));
            } else {
                report.beyond += 1;
            }
        }
    }
    Ok(report)
}

fn depth(reached: &[Reached], number: u32) -> u32 {
    number.checked_sub(1).map_or(0, |place| reached[place as usize].depth)
}

fn way(reached: &[Reached], last: u32) -> Vec<Action> {
    let mut way = Vec::new();
    let mut number = last;
    while let Some(place) = number.checked_sub(1) {
        let Reached { from, by, .. } = reached[place as usize];
        way.push(by);
        number = from;
    }
    way.reverse();
    way
}

/// The steps of `way` as text, and what every node believes in the end; with `on`, how it goes on
/// until it should be ideal.
fn tell(mut world: World, way: &[Action], on: bool) -> String {
    let mut story = Story::default();
    for action in way {
        story.told(&world);
        story.tell(&world, *action);
        world.apply(*action);
    }
    story.told(&world);
    if on {
        let _ = writeln!(story.text, "and then, though nothing else goes wrong:");
        let _ = world.settle(&mut |world, action| {
            story.told(world);
            story.tell(world, action);
        });
        story.told(&world);
    }
    let list = world.list(&mut story.ops).join("\n  ");
    format!("{}in the end:\n  {list}\n", story.text)
}

#[derive(Default)]
struct Story {
    text: String,
    ops: Ops,
    before: Vec<String>,
    lines: usize,
}

/// Steps that are told; what goes in circles is clear by then.
const TOLD: usize = 60;

impl Story {
    /// What changed.
    fn told(&mut self, world: &World) {
        let now = world.list(&mut self.ops);
        for (_, new) in self.before.iter().zip(&now).filter(|(old, new)| old != new) {
            if self.lines < TOLD {
                let _ = writeln!(self.text, "        {new}");
            }
        }
        self.before = now;
    }

    fn tell(&mut self, world: &World, action: Action) {
        let line = world.tell(action, &mut self.ops);
        self.lines += 1;
        if self.lines < TOLD {
            let _ = writeln!(self.text, "{line}");
        }
    }
}
