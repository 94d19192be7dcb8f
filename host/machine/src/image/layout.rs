//! The rules for segments: where they are in the file, in memory and to each other.

use goblin::elf::program_header::{PF_R, PF_W, PF_X, PT_LOAD, ProgramHeader};

use super::segments::{Access, Segment};
use super::{ImageError, Placement, SegmentLabel, file, solo5};

/// Most memory of all segments together, in bytes, counted in whole pages.
pub const IMAGE_MEMORY_MAX: u64 = 1 << 30;

/// Lowest address of a fixed image: page 0 and its neighbours stay unmapped, so
/// that a null pointer with a small offset faults.
pub const ADDRESS_LOWEST: u64 = 64 << 10;

/// Where the addresses of a fixed image end. Everything from here to the end of
/// the lower canonical half is the host's to place things in.
pub const ADDRESS_END: u64 = 1 << 46;

/// Where the addresses of a relocatable image end, before it is moved. It is
/// linked near 0, so this bounds how much room it needs around its base.
pub const RELOCATABLE_END: u64 = IMAGE_MEMORY_MAX;

/// Largest alignment that a relocatable image can ask for, in bytes: a large
/// page. More would leave a random base little to choose from.
pub const ALIGNMENT_MAX: u64 = 2 << 20;

/// Whose rules segments have to keep, where these differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// wharf's own, of an image that is placed so.
    Native(Placement),
    /// Solo5's for hvt.
    Hvt,
}

/// Checks every `PT_LOAD` header that has memory and sorts them by address.
pub(super) fn check(
    programs: &[ProgramHeader],
    file_len: usize,
    rules: Rules,
) -> Result<Vec<Segment>, ImageError> {
    let mut segments = Vec::new();
    for (index, program) in programs.iter().enumerate() {
        let empty = program.p_memsz == 0 && program.p_filesz == 0;
        if program.p_type == PT_LOAD && !empty {
            segments.push(check_one(index, program, file_len, rules)?);
        }
    }
    if segments.is_empty() {
        return Err(ImageError::NoSegments);
    }
    segments.sort_by_key(|segment| segment.addr);
    if rules == Rules::Hvt {
        solo5::check_neighbours(&segments)?;
    }
    check_neighbours(&segments)?;
    check_memory(&segments)?;
    Ok(segments)
}

/// Checks that the first instruction is a byte of the file, and not of the zeros
/// that follow it.
pub(super) fn check_entry(segments: &[Segment], entry: u64) -> Result<(), ImageError> {
    let is_code = segments.iter().any(|segment| {
        segment.access.is_executable() && (segment.addr..segment.file_end()).contains(&entry)
    });
    if is_code {
        Ok(())
    } else {
        Err(ImageError::EntryNotCode { entry })
    }
}

fn check_one(
    index: usize,
    program: &ProgramHeader,
    file_len: usize,
    rules: Rules,
) -> Result<Segment, ImageError> {
    let segment = SegmentLabel::new(index, program);
    if program.p_filesz > program.p_memsz {
        return Err(ImageError::FileLongerThanMemory {
            segment,
            file_len: program.p_filesz,
        });
    }
    let file = file::range(file_len, program.p_offset, program.p_filesz).ok_or(
        ImageError::SegmentOutsideFile {
            segment,
            offset: program.p_offset,
            file_len: program.p_filesz,
        },
    )?;
    match rules {
        Rules::Native(placement) => {
            check_address(segment, placement)?;
            check_alignment(segment, program, placement)?;
        }
        Rules::Hvt => solo5::check_place(segment, program)?,
    }
    Ok(Segment {
        index,
        addr: program.p_vaddr,
        file_len: program.p_filesz,
        mem_len: program.p_memsz,
        access: check_access(segment, rules)?,
        label: segment,
        align: program.p_align,
        file,
    })
}

fn check_address(segment: SegmentLabel, placement: Placement) -> Result<(), ImageError> {
    let end = segment
        .addr
        .checked_add(segment.mem_len)
        .ok_or(ImageError::AddressOverflow { segment })?;
    match placement {
        Placement::Fixed if segment.addr < ADDRESS_LOWEST => {
            Err(ImageError::AddressTooLow { segment })
        }
        Placement::Fixed if end > ADDRESS_END => Err(ImageError::AddressTooHigh { segment }),
        Placement::Relocatable if end > RELOCATABLE_END => {
            Err(ImageError::RelocatableTooHigh { segment })
        }
        Placement::Fixed | Placement::Relocatable => Ok(()),
    }
}

/// Segments are copied into memory, not mapped from the file, so an alignment
/// below a page is as good as any.
fn check_alignment(
    segment: SegmentLabel,
    program: &ProgramHeader,
    placement: Placement,
) -> Result<(), ImageError> {
    let align = program.p_align;
    if align <= 1 {
        return Ok(());
    }
    if !align.is_power_of_two() {
        return Err(ImageError::AlignmentNotPowerOfTwo { segment, align });
    }
    if placement == Placement::Relocatable && align > ALIGNMENT_MAX {
        return Err(ImageError::AlignmentTooLarge { segment, align });
    }
    let differ = program.p_vaddr ^ program.p_offset;
    if differ & align.saturating_sub(1) != 0 {
        return Err(ImageError::Misaligned {
            segment,
            offset: program.p_offset,
            align,
        });
    }
    Ok(())
}

/// The CPU has no pages that can be used and not read, so a segment that does not
/// ask to be readable is refused; but Solo5's linker script asks for no more than it
/// needs, of code too.
fn check_access(segment: SegmentLabel, rules: Rules) -> Result<Access, ImageError> {
    let has = |flag| segment.flags & flag != 0;
    let is_readable = has(PF_R) || rules == Rules::Hvt;
    match (has(PF_W), has(PF_X)) {
        (true, true) => Err(ImageError::WritableAndExecutable { segment }),
        _ if !is_readable => Err(ImageError::NotReadable { segment }),
        (false, false) => Ok(Access::Read),
        (true, false) => Ok(Access::ReadWrite),
        (false, true) => Ok(Access::ReadExecute),
    }
}

fn check_neighbours(sorted: &[Segment]) -> Result<(), ImageError> {
    for (before, after) in sorted.iter().zip(sorted.iter().skip(1)) {
        let segment = after.label;
        let other = before.index;
        if before.range().end > after.addr {
            return Err(ImageError::Overlap { segment, other });
        }
        if before.pages().end > after.pages().start {
            return Err(ImageError::SharedPage { segment, other });
        }
    }
    Ok(())
}

fn check_memory(segments: &[Segment]) -> Result<(), ImageError> {
    let mut bytes: u64 = 0;
    for segment in segments {
        let pages = segment.pages();
        bytes = bytes.saturating_add(pages.end.saturating_sub(pages.start));
        if bytes > IMAGE_MEMORY_MAX {
            return Err(ImageError::TooMuchMemory {
                segment: segment.label,
                bytes,
            });
        }
    }
    Ok(())
}
