//! The ledger: what was promised against the owner's ceilings. Promises never exceed them.

use core::fmt;
use dugnad_kernel::map::Map;

use dugnad_kernel::{Id, Time};
use serde::{Deserialize, Serialize};

/// Amounts of what can be lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Bytes of memory.
    pub memory: u64,
    /// Thousandths of one core.
    pub cpu: u32,
    /// Bytes of disk.
    pub disk: u64,
    /// Processes and threads.
    pub processes: u32,
}

/// The owner's ceilings on the sum of everything that is not hers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ceilings {
    pub amounts: Amounts,
    /// Bytes a second upwards; `None` is unlimited.
    pub upload: Option<u64>,
}

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Short {
    Memory { needs: u64, free: u64 },
    Cpu { needs: u32, free: u32 },
    Disk { needs: u64, free: u64 },
    Processes { needs: u32, free: u32 },
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Memory { needs, free } => {
                write!(f, "memory: needs {}, free {}", Bytes(needs), Bytes(free))
            }
            Self::Cpu { needs, free } => {
                write!(f, "cpu: needs {}%, free {}%", needs / 10, free / 10)
            }
            Self::Disk { needs, free } => {
                write!(f, "disk: needs {}, free {}", Bytes(needs), Bytes(free))
            }
            Self::Processes { needs, free } => {
                write!(f, "processes: needs {needs}, free {free}")
            }
        }
    }
}

/// Bytes as people write them in the owner's file: `64M`, `1G`, `1500K`, `12`.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b if b >= 10 << 30 || (b >= 1 << 30 && b % (1 << 30) == 0) => write!(f, "{}G", b >> 30),
            b if b >= 10 << 20 || (b >= 1 << 20 && b % (1 << 20) == 0) => write!(f, "{}M", b >> 20),
            b if b >= 1 << 10 => write!(f, "{}K", b >> 10),
            b => write!(f, "{b}"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Promise {
    amounts: Amounts,
    /// A promise nobody took up by then is void; `None` is taken up.
    until: Option<Time>,
}

/// Promises by replica: one service may have several on one node.
#[derive(Clone, Debug)]
pub struct Ledger {
    ceilings: Ceilings,
    promises: Map<(Id, u32), Promise>,
}

impl Ledger {
    #[must_use]
    pub const fn new(ceilings: Ceilings) -> Self {
        Self { ceilings, promises: Map::new() }
    }

    #[must_use]
    pub const fn ceilings(&self) -> &Ceilings {
        &self.ceilings
    }

    /// Changes the ceilings. Promises already made stay; [`Ledger::excess`] says if they fit.
    pub fn set_ceilings(&mut self, ceilings: Ceilings) {
        self.ceilings = ceilings;
    }

    #[must_use]
    pub fn promised(&self) -> Amounts {
        self.promises.values().fold(Amounts::default(), |sum, promise| Amounts {
            memory: sum.memory.saturating_add(promise.amounts.memory),
            cpu: sum.cpu.saturating_add(promise.amounts.cpu),
            disk: sum.disk.saturating_add(promise.amounts.disk),
            processes: sum.processes.saturating_add(promise.amounts.processes),
        })
    }

    #[must_use]
    pub fn free(&self) -> Amounts {
        let (all, promised) = (self.ceilings.amounts, self.promised());
        Amounts {
            memory: all.memory.saturating_sub(promised.memory),
            cpu: all.cpu.saturating_sub(promised.cpu),
            disk: all.disk.saturating_sub(promised.disk),
            processes: all.processes.saturating_sub(promised.processes),
        }
    }

    /// Promises `amounts` to a replica until `until`, unless [`Ledger::keep`] confirms it.
    /// Asking again for the same replica replaces the earlier promise.
    ///
    /// # Errors
    /// [`Short`] with the first thing there is too little of; nothing changed then.
    pub fn promise(
        &mut self,
        replica: (Id, u32),
        amounts: Amounts,
        until: Time,
    ) -> Result<(), Short> {
        let earlier = self.promises.remove(&replica);
        if let Err(short) = self.fits(amounts) {
            if let Some(earlier) = earlier {
                self.promises.insert(replica, earlier);
            }
            return Err(short);
        }
        let kept = earlier.is_some_and(|earlier| earlier.until.is_none());
        let until = (!kept).then_some(until);
        self.promises.insert(replica, Promise { amounts, until });
        Ok(())
    }

    /// Takes a promise up: it holds until it is released. A void or unknown one is refused.
    pub fn keep(&mut self, replica: (Id, u32)) -> bool {
        match self.promises.get_mut(&replica) {
            Some(promise) => {
                promise.until = None;
                true
            }
            None => false,
        }
    }

    /// Writes down what already runs here, whether or not it fits (after a restart).
    pub fn adopt(&mut self, replica: (Id, u32), amounts: Amounts) {
        self.promises.insert(replica, Promise { amounts, until: None });
    }

    #[must_use]
    pub fn has(&self, replica: (Id, u32)) -> bool {
        self.promises.contains_key(&replica)
    }

    pub fn release(&mut self, replica: (Id, u32)) {
        self.promises.remove(&replica);
    }

    /// Drops promises nobody took up in time.
    pub fn expire(&mut self, now: Time) {
        self.promises.retain(|_, promise| promise.until.is_none_or(|until| until > now));
    }

    /// When the next promise that nobody took up is void.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Time> {
        self.promises.values().filter_map(|promise| promise.until).min()
    }

    /// What is promised above the ceilings (they were lowered), if anything.
    #[must_use]
    pub fn excess(&self) -> Option<Short> {
        let (all, promised) = (self.ceilings.amounts, self.promised());
        short(promised, all)
    }

    fn fits(&self, amounts: Amounts) -> Result<(), Short> {
        short(amounts, self.free()).map_or(Ok(()), Err)
    }
}

fn short(needs: Amounts, free: Amounts) -> Option<Short> {
    if needs.memory > free.memory {
        Some(Short::Memory { needs: needs.memory, free: free.memory })
    } else if needs.cpu > free.cpu {
        Some(Short::Cpu { needs: needs.cpu, free: free.cpu })
    } else if needs.disk > free.disk {
        Some(Short::Disk { needs: needs.disk, free: free.disk })
    } else if needs.processes > free.processes {
        Some(Short::Processes { needs: needs.processes, free: free.processes })
    } else {
        None
    }
}

impl Amounts {
    /// What of `self` does not fit into `free`.
    #[must_use]
    pub fn short_of(self, free: Self) -> Option<Short> {
        short(self, free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dugnad_kernel::Duration;

    fn ceilings(memory: u64) -> Ceilings {
        let amounts = Amounts { memory, cpu: 1_000, disk: 1 << 30, processes: 64 };
        Ceilings { amounts, upload: None }
    }

    fn memory(memory: u64) -> Amounts {
        Amounts { memory, ..Amounts::default() }
    }

    #[test]
    fn a_void_promise_gives_its_room_back_and_cannot_be_taken_up() {
        let mut ledger = Ledger::new(ceilings(100));
        let soon = Time(0) + Duration::from_secs(60);
        assert_eq!(ledger.promise((Id(1), 0), memory(80), soon), Ok(()));
        let short = Short::Memory { needs: 30, free: 20 };
        assert_eq!(ledger.promise((Id(2), 0), memory(30), soon), Err(short));
        ledger.expire(soon);
        assert!(!ledger.keep((Id(1), 0)));
        assert_eq!(ledger.promise((Id(2), 0), memory(30), soon), Ok(()));
    }

    /// Whatever order reservations, confirmations, releases and expiries come in.
    #[test]
    fn promises_never_exceed_the_ceilings() {
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..200 {
            let mut ledger = Ledger::new(ceilings(rng.u64(1..1000)));
            for step in 0..100u64 {
                let replica = (Id(u128::from(rng.u8(0..6))), rng.u32(0..2));
                let now = Time(step);
                match rng.u8(0..4) {
                    0 | 1 => {
                        let until = now + Duration::from_micros(rng.u64(1..20));
                        let _: Result<(), Short> =
                            ledger.promise(replica, memory(rng.u64(0..400)), until);
                    }
                    2 => {
                        ledger.keep(replica);
                    }
                    _ => ledger.release(replica),
                }
                ledger.expire(now);
                assert_eq!(ledger.excess(), None);
            }
        }
    }

    #[test]
    fn bytes_are_printed_as_they_are_written() {
        let text = |bytes| std::format!("{}", Bytes(bytes));
        assert_eq!(text(64 << 20), "64M");
        assert_eq!(text(2 << 30), "2G");
        assert_eq!(text(1500 << 10), "1500K");
        assert_eq!(text(12), "12");
    }
}
