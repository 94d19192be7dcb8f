//! The ELF header and the table of program headers.

use goblin::elf::header::{
    EI_ABIVERSION, EI_CLASS, EI_DATA, EI_OSABI, EI_VERSION, ELFCLASS64, ELFDATA2LSB, ELFMAG,
    ELFOSABI_GNU, ELFOSABI_NONE, EM_X86_64, ET_DYN, ET_EXEC, EV_CURRENT,
};
use goblin::elf::program_header::{PF_X, PT_GNU_STACK, PT_INTERP, PT_TLS, ProgramHeader};
use goblin::elf64::header::{Header as ElfHeader, SIZEOF_EHDR};
use goblin::elf64::program_header::SIZEOF_PHDR;

use super::ImageError;
use super::file::{self, CTX};

/// Most program headers of an image of wharf's own contract. Linkers write about ten;
/// each may name the same notes, all of which are walked. Of one of Solo5's, whose
/// contract knows of no bound but the field's, only the first note of each is read.
pub const PROGRAM_HEADERS_MAX: u16 = 64;

/// Whether an image's addresses are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Linked for its addresses (`ET_EXEC`).
    Fixed,
    /// Linked at 0, to be moved as a whole to a base of the host's choice, a
    /// multiple of [`Image::alignment`](super::Image::alignment) (`ET_DYN`).
    Relocatable,
}

/// What the rest of the checks needs of the headers.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) placement: Placement,
    pub(super) entry: u64,
    pub(super) programs: Vec<ProgramHeader>,
    /// The OS ABI and its version, as the file says.
    os_abi: (u8, u8),
}

/// Checks both, as far as every kind of image has to keep the same rules.
pub(super) fn check(bytes: &[u8]) -> Result<Header, ImageError> {
    let header = read(bytes)?;
    let placement = match header.e_type {
        ET_EXEC => Placement::Fixed,
        ET_DYN => Placement::Relocatable,
        kind => return Err(ImageError::WrongType { kind }),
    };
    let ident = |at| header.e_ident.get(at).copied().unwrap_or_default();
    Ok(Header {
        placement,
        entry: header.e_entry,
        programs: read_programs(bytes, &header)?,
        os_abi: (ident(EI_OSABI), ident(EI_ABIVERSION)),
    })
}

/// Checks that the file and its program headers ask for nothing that a guest of
/// wharf's own contract does not get.
pub(super) fn check_native(header: &Header) -> Result<(), ImageError> {
    // lld and GNU ld write GNU when a symbol or section uses an extension, which
    // changes nothing about loading.
    let count = u16::try_from(header.programs.len()).unwrap_or(u16::MAX);
    if count > PROGRAM_HEADERS_MAX {
        return Err(ImageError::TooManyProgramHeaders { count });
    }
    match header.os_abi {
        (ELFOSABI_NONE | ELFOSABI_GNU, 0) => check_programs(&header.programs),
        (os_abi, version) => Err(ImageError::WrongOsAbi { os_abi, version }),
    }
}

fn read(bytes: &[u8]) -> Result<ElfHeader, ImageError> {
    let too_short = ImageError::FileTooShort { bytes: bytes.len() };
    if !bytes.starts_with(ELFMAG) {
        return Err(if bytes.len() < ELFMAG.len() {
            too_short
        } else {
            ImageError::NotElf
        });
    }
    if bytes.len() < SIZEOF_EHDR {
        return Err(too_short);
    }
    // goblin picks the byte order from the file, so the encoding is looked at
    // before anything of more than a byte.
    let ident = |at| bytes.get(at).copied().unwrap_or_default();
    match (ident(EI_CLASS), ident(EI_DATA)) {
        (ELFCLASS64, ELFDATA2LSB) => {}
        (ELFCLASS64, encoding) => return Err(ImageError::NotLittleEndian { encoding }),
        (class, _) => return Err(ImageError::NotSixtyFourBit { class }),
    }
    let header = ElfHeader::parse(bytes).map_err(|_| too_short)?;
    let current = u32::from(EV_CURRENT);
    for version in [u32::from(ident(EI_VERSION)), header.e_version] {
        if version != current {
            return Err(ImageError::WrongElfVersion { version });
        }
    }
    if header.e_machine != EM_X86_64 {
        return Err(ImageError::WrongMachine {
            machine: header.e_machine,
        });
    }
    if usize::from(header.e_ehsize) != SIZEOF_EHDR {
        return Err(ImageError::WrongHeaderSize {
            size: header.e_ehsize,
        });
    }
    Ok(header)
}

fn read_programs(bytes: &[u8], header: &ElfHeader) -> Result<Vec<ProgramHeader>, ImageError> {
    let count = header.e_phnum;
    if count == 0 {
        return Err(ImageError::NoSegments);
    }
    if usize::from(header.e_phentsize) != SIZEOF_PHDR {
        return Err(ImageError::WrongProgramHeaderSize {
            size: header.e_phentsize,
        });
    }
    let outside = ImageError::ProgramHeadersOutsideFile {
        offset: header.e_phoff,
        count,
    };
    let len = u64::from(count).saturating_mul(u64::from(header.e_phentsize));
    let table = file::range(bytes.len(), header.e_phoff, len)
        .and_then(|range| bytes.get(range))
        .ok_or_else(|| outside.clone())?;
    ProgramHeader::parse(table, 0, usize::from(count), CTX).map_err(|_| outside)
}

fn check_programs(programs: &[ProgramHeader]) -> Result<(), ImageError> {
    for (index, program) in programs.iter().enumerate() {
        match program.p_type {
            PT_INTERP => return Err(ImageError::NeedsInterpreter { index }),
            PT_TLS => return Err(ImageError::NeedsThreadLocals { index }),
            PT_GNU_STACK if program.p_flags & PF_X != 0 => {
                return Err(ImageError::ExecutableStack { index });
            }
            _ => {}
        }
    }
    Ok(())
}
