//! Whether a program in a package is one for the CPU it is said to be for, from its ELF header:
//! better said here than as "exec format error" on somebody else's machine.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dugnad_resource::spec::Arch;

/// Bytes of an ELF header up to and with `e_machine`.
const HEADER: u64 = 20;

/// Checks `program` in the package `folder`, which the file calls `said`.
///
/// # Errors
/// It is missing, not executable or for another CPU; for a person to read.
pub(super) fn check_program(
    folder: &Path,
    said: &Path,
    program: &Path,
    arch: Option<Arch>,
) -> Result<(), String> {
    let (path, shown) = (folder.join(program), said.join(program));
    let shown = shown.display();
    let mut file =
        File::open(&path).map_err(|error| format!("{shown}, which the command runs: {error}"))?;
    let about = file.metadata().map_err(|error| format!("{shown}: {error}"))?;
    if !about.is_file() {
        return Err(format!("{shown}, which the command runs, is no file"));
    }
    if about.permissions().mode() & 0o111 == 0 {
        return Err(format!("{shown} is not executable: chmod +x {}", path.display()));
    }
    let mut header = Vec::new();
    file.by_ref()
        .take(HEADER)
        .read_to_end(&mut header)
        .map_err(|error| format!("{shown}: {error}"))?;
    // Not ELF: a script, which the kernel hands to its interpreter.
    let Some(machine) = Machine::of(&header) else { return Ok(()) };
    match arch {
        Some(arch) if machine.is(arch) => Ok(()),
        Some(_) => Err(format!("{shown} is a program for {}", machine.name())),
        None => Err(format!(
            "{shown} is a program for {0}: name the CPU instead of `any`, for example \
             {0} = \"{1}\"",
            machine.name(),
            said.display()
        )),
    }
}

/// What an ELF header says of the processor. 32-bit ARM does not tell its versions apart there.
struct Machine {
    number: u16,
    wide: bool,
    little: bool,
}

impl Machine {
    fn of(header: &[u8]) -> Option<Self> {
        let header: &[u8; 20] = header.try_into().ok()?;
        if !header.starts_with(b"\x7fELF") {
            return None;
        }
        let (wide, little) = (header[4] == 2, header[5] == 1);
        let number = [header[18], header[19]];
        let number = if little { u16::from_le_bytes(number) } else { u16::from_be_bytes(number) };
        Some(Self { number, wide, little })
    }

    fn is(&self, arch: Arch) -> bool {
        let (number, wide) = match arch {
            Arch::X86_64 => (62, true),
            Arch::Aarch64 => (183, true),
            Arch::Armv7 | Arch::Armv6 => (40, false),
            Arch::Mipsel => (8, false),
            Arch::Riscv64 => (243, true),
        };
        self.little && (self.number, self.wide) == (number, wide)
    }

    fn name(&self) -> String {
        match Arch::ALL.into_iter().find(|arch| self.is(*arch)) {
            Some(arch) => arch.name().to_owned(),
            None => format!(
                "another CPU (ELF machine {}, {} bits, {} endian)",
                self.number,
                if self.wide { 64 } else { 32 },
                if self.little { "little" } else { "big" }
            ),
        }
    }
}
