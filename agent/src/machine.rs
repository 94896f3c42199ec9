//! What this machine is, as conditions on nodes see it.

use std::time::{Duration, Instant};

use dugnad_kernel::Hash;
use dugnad_resource::describe::Machine;

use crate::config::HostFacts;

/// Features worth asking for, as Linux names them in `flags` (x86) or `Features` (ARM).
const FEATURES: [&str; 16] = [
    "aes", "asimd", "avx", "avx2", "avx512f", "bmi2", "crc32", "f16c", "fma", "neon", "sha2",
    "sha_ni", "sse4_2", "svm", "vfpv4", "vmx",
];
/// How long the speed is measured at the start of the agent.
const MEASURE: Duration = Duration::from_millis(5);
const BLOCK: usize = 64 << 10;

pub(crate) fn probe() -> Machine {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Machine {
        features: features(&cpuinfo),
        cores: std::thread::available_parallelism()
            .map_or(1, |cores| u16::try_from(cores.get()).unwrap_or(u16::MAX)),
        speed: speed(),
        ram: HostFacts::probe().memory,
    }
}

/// Those of [`FEATURES`] that the first core has.
fn features(cpuinfo: &str) -> Vec<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("flags") || line.starts_with("Feat"));
    let has: Vec<&str> = line
        .and_then(|line| line.split_once(':'))
        .map_or(Vec::new(), |(_, all)| all.split_whitespace().collect());
    FEATURES.into_iter().filter(|known| has.contains(known)).map(str::to_owned).collect()
}

/// Megabytes a second that one core hashes, to two digits: the rest differs from start to start.
fn speed() -> u32 {
    let block = vec![7_u8; BLOCK];
    let (begin, mut bytes) = (Instant::now(), 0_u64);
    while begin.elapsed() < MEASURE {
        std::hint::black_box(Hash::of(&block));
        bytes += BLOCK as u64;
    }
    let micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
    two_digits(u32::try_from(bytes / micros).unwrap_or(u32::MAX).max(1))
}

fn two_digits(value: u32) -> u32 {
    let mut unit = 1;
    while value / unit >= 100 {
        unit *= 10;
    }
    value / unit * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_on_both_kinds() {
        let x86 = "processor : 0\nflags\t\t: fpu vme avx2 aes sse4_2 zzz\n";
        assert_eq!(features(x86), ["aes", "avx2", "sse4_2"]);
        let arm = "processor\t: 0\nFeatures\t: half thumb neon vfpv4\n";
        assert_eq!(features(arm), ["neon", "vfpv4"]);
        assert!(features("").is_empty());
    }

    #[test]
    fn speed_is_a_number_people_can_compare() {
        assert_eq!((two_digits(7), two_digits(123), two_digits(1_999)), (7, 120, 1_900));
        assert!(speed() > 0);
    }
}
