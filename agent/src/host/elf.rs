//! Whether this machine can run a program file, said before the kernel says "exec format error".

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use dugnad_platform::explain;
use dugnad_resource::spec::Arch;

/// Bytes of the header that say what it is for.
const HEADER: usize = 20;

/// # Errors
/// What is wrong with it, for a person: not there, or built for another processor.
pub(super) fn check(program: &Path, arch: Arch) -> Result<(), String> {
    match header(program) {
        Ok(header) => machine(&header).map_or(Ok(()), |built| fits(built, arch)),
        Err(error) => Err(error.to_string()),
    }
}

fn header(program: &Path) -> io::Result<Vec<u8>> {
    let mut header = Vec::with_capacity(HEADER);
    File::open(program)
        .and_then(|file| file.take(HEADER as u64).read_to_end(&mut header))
        .map_err(|error| explain(&error, &format!("cannot read {}", program.display())))?;
    Ok(header)
}

/// `e_machine`, if it is an ELF file at all (it may be a script).
fn machine(header: &[u8]) -> Option<u16> {
    if header.len() < HEADER || !header.starts_with(b"\x7fELF") {
        return None;
    }
    let bytes = [header[18], header[19]];
    Some(if header[5] == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
}

fn fits(built: u16, arch: Arch) -> Result<(), String> {
    // From elf.h. The header does not tell ARMv6 from ARMv7.
    let (name, runs): (&str, &[Arch]) = match built {
        3 => ("x86 (32 bit)", &[Arch::X86_64]),
        8 => ("mips", &[Arch::Mipsel]),
        40 => ("32-bit arm", &[Arch::Armv7, Arch::Armv6]),
        62 => ("x86_64", &[Arch::X86_64]),
        183 => ("aarch64", &[Arch::Aarch64]),
        243 => ("riscv64", &[Arch::Riscv64]),
        other => return Err(format!("artifact for machine type {other} cannot run on {arch}")),
    };
    if runs.contains(&arch) {
        Ok(())
    } else {
        Err(format!("artifact for {name} cannot run on {arch}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read_from_the_header() {
        let mut header = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0";
        assert_eq!(machine(&header), Some(183));
        header[5] = 2;
        header[18..].copy_from_slice(&[0, 8]);
        assert_eq!(machine(&header), Some(8));
        assert_eq!(machine(b"#!/bin/sh\necho hello there"), None);
        assert_eq!(
            fits(183, Arch::X86_64),
            Err("artifact for aarch64 cannot run on x86_64".to_owned())
        );
        assert_eq!(fits(40, Arch::Armv6), Ok(()));
    }
}
