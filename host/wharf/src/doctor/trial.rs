//! A guest of two instructions, to see whether guests run here.

use std::time::{Duration, Instant};

use wharf_abi::note::Note;
use wharf_abi::{Hypercall, Manifest};
use wharf_machine::image::{Image, ImageError};
use wharf_machine::{BootConfig, Call, Error, Exit, Hypervisor, Machine};
use zerocopy::IntoBytes;

/// Exit status of the guest: not 0, which is what nothing at all would give.
const STATUS: u8 = 42;

/// Address of the guest's only segment, which is the whole file.
const BASE: u64 = 0x40_0000;

const ELF_HEADER_LEN: u64 = 64;
const PROGRAM_HEADER_LEN: u64 = 56;

/// Memory of the guest, in bytes: enough for its tables, stack and heap.
const MEMORY: u64 = 4 << 20;

/// The trial guest did not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrialError {
    /// Its image was not made well.
    #[error("its image is refused: {0}")]
    Image(#[from] ImageError),
    /// The machine's fault.
    #[error(transparent)]
    Machine(#[from] Error),
    /// It did something else than to exit.
    #[error("it ended in another way than by exiting with {STATUS}: {0:?}")]
    Ended(Exit),
}

/// Runs the guest, and tells how long that took from opening KVM to its end.
pub(super) fn run() -> Result<Duration, TrialError> {
    let image = Image::parse(image())?;
    let start = Instant::now();
    let hypervisor = Hypervisor::open()?;
    let config = BootConfig {
        memory: MEMORY,
        ..BootConfig::default()
    };
    let mut machine = Machine::boot(&hypervisor, &image, &config, Vec::new())?;
    loop {
        match machine.enter(None)? {
            Exit::Call(Call::Exit { status }) if status == STATUS => return Ok(start.elapsed()),
            Exit::Interrupted => {}
            other => return Err(TrialError::Ended(other)),
        }
    }
}

/// An executable with a note and `mov edi, STATUS; out EXIT, al` (System V gABI
/// chapters 4 and 5).
fn image() -> Vec<u8> {
    let note = Note::new(Manifest::new("wharf-doctor", env!("CARGO_PKG_VERSION")));
    let note = note.as_bytes();
    let exit = Hypercall::Exit.port().to_le_bytes()[0];
    let code = [0xBF, STATUS, 0, 0, 0, 0xE6, exit];

    let note_at = ELF_HEADER_LEN + 2 * PROGRAM_HEADER_LEN;
    let note_len = u64::try_from(note.len()).unwrap_or(0);
    let code_at = note_at.saturating_add(note_len);
    let len = code_at.saturating_add(u64::try_from(code.len()).unwrap_or(0));

    let mut file = Vec::new();
    // 64-bit, little-endian, ELF version 1, System V.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_EXEC, EM_X86_64.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [BASE.saturating_add(code_at), ELF_HEADER_LEN, 0] {
        file.extend(word.to_le_bytes());
    }
    // No flags, then the sizes and counts of headers: two program headers.
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable and executable: all of the file.
    program_header(&mut file, [1, 5], 0, len, 4096);
    // PT_NOTE, readable.
    program_header(&mut file, [4, 4], note_at, note_len, 4);
    file.extend(note);
    file.extend(code);
    file
}

fn program_header(file: &mut Vec<u8>, kind_flags: [u32; 2], at: u64, len: u64, align: u64) {
    file.extend(kind_flags.into_iter().flat_map(u32::to_le_bytes));
    let addr = BASE.saturating_add(at);
    for word in [at, addr, addr, len, len, align] {
        file.extend(word.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use wharf_machine::image::Image;

    #[test]
    fn the_image_keeps_every_rule() {
        let image = Image::parse(super::image()).unwrap();
        assert_eq!(image.manifest().name, "wharf-doctor");
        assert_eq!(image.segments().len(), 1);
    }
}
