//! Makes ELF images in memory: good ones, and files that break exactly one rule.
//!
//! ```
//! use wharf_tests::elf::ElfBuilder;
//!
//! // hlt
//! let guest = ElfBuilder::guest(&[0xf4]).build();
//! let for_arm = ElfBuilder::guest(&[0xf4]).edited(|elf| elf.header.machine = 183);
//! # assert_eq!(guest.len(), for_arm.len());
//! ```
//!
//! A file is laid out as header, program headers, the segments' bytes in the
//! order they were added, the note, the tables of relocations, and symbols with
//! their section headers. Program headers stand in the same order, so segment
//! *n* of a message is the *n*-th that was added.

use wharf_abi::Manifest;
use wharf_abi::note::Note;
use zerocopy::{Immutable, IntoBytes};

/// Where [`ElfBuilder::code`] puts code.
pub const CODE_ADDR: u64 = 0x40_0000;

/// Where the tables of relocations are in memory.
pub const TABLES_ADDR: u64 = 0x3000_0000;

/// Alignment of segments in the file, and their `p_align`. Far below a page, to
/// keep the files small.
pub const SEGMENT_ALIGN: u64 = 16;

/// `p_flags`: executable.
pub const X: u32 = 1;
/// `p_flags`: writable.
pub const W: u32 = 2;
/// `p_flags`: readable.
pub const R: u32 = 4;

/// `p_type` of a segment to load.
pub const PT_LOAD: u32 = 1;
/// `p_type` of the dynamic section.
pub const PT_DYNAMIC: u32 = 2;
/// `p_type` of the path of a dynamic linker.
pub const PT_INTERP: u32 = 3;
/// `p_type` of notes.
pub const PT_NOTE: u32 = 4;
/// `p_type` of the template of thread-local storage.
pub const PT_TLS: u32 = 7;
/// `p_type` of the wish for a stack.
pub const PT_GNU_STACK: u32 = 0x6474_e551;
/// `p_type` of what is read-only after relocation.
pub const PT_GNU_RELRO: u32 = 0x6474_e552;

/// Type of the relocation that adds the base.
pub const R_X86_64_RELATIVE: u32 = 8;

const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const STT_FUNC: u8 = 2;
const DT_NULL: u64 = 0;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_RELAENT: u64 = 9;
const DT_RELRSZ: u64 = 35;
const DT_RELR: u64 = 36;
const DT_RELRENT: u64 = 37;

/// `Elf64_Ehdr`, without the prefixes.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs, reason = "the gABI's fields under the gABI's names")]
pub struct Header {
    pub ident: [u8; 16],
    pub kind: u16,
    pub machine: u16,
    pub version: u32,
    pub entry: u64,
    pub phoff: u64,
    pub shoff: u64,
    pub flags: u32,
    pub ehsize: u16,
    pub phentsize: u16,
    pub phnum: u16,
    pub shentsize: u16,
    pub shnum: u16,
    pub shstrndx: u16,
}

/// `Elf64_Phdr`, without the prefixes.
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs, reason = "the gABI's fields under the gABI's names")]
pub struct Program {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub vaddr: u64,
    pub paddr: u64,
    pub filesz: u64,
    pub memsz: u64,
    pub align: u64,
}

/// `Elf64_Shdr`, without the prefixes.
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs, reason = "the gABI's fields under the gABI's names")]
pub struct Section {
    pub name: u32,
    pub kind: u32,
    pub flags: u64,
    pub addr: u64,
    pub offset: u64,
    pub size: u64,
    pub link: u32,
    pub info: u32,
    pub addralign: u64,
    pub entsize: u64,
}

/// A segment that holds the dynamic section, RELA and RELR, in this order.
struct Tables {
    segment: Program,
    dynamic: Program,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    shndx: u16,
    value: u64,
    size: u64,
}

/// A file in parts, to be spoilt.
#[derive(Clone, Debug)]
pub struct Elf {
    /// Written to the start of the file.
    pub header: Header,
    /// Written behind the header, wherever it says they are.
    pub programs: Vec<Program>,
    /// Written to the end of the file, wherever the header says they are.
    pub sections: Vec<Section>,
    /// What is between the two.
    pub body: Vec<u8>,
}

impl Elf {
    /// The file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [
            self.header.as_bytes(),
            self.programs.as_bytes(),
            &self.body,
            self.sections.as_bytes(),
        ]
        .concat()
    }

    /// Offset in the file of what is appended to the body next.
    fn at(&self) -> u64 {
        len(self.header.as_bytes())
            .saturating_add(len(self.programs.as_bytes()))
            .saturating_add(len(&self.body))
    }

    fn place(&mut self, program: usize, offset: u64) {
        if let Some(program) = self.programs.get_mut(program) {
            program.offset = offset;
        }
    }

    /// Appends to the body at the next multiple of [`SEGMENT_ALIGN`] plus `skew`,
    /// and returns the offset in the file.
    fn append(&mut self, bytes: &[u8], skew: u64) -> u64 {
        while self.at() % SEGMENT_ALIGN != skew % SEGMENT_ALIGN {
            self.body.push(0);
        }
        let at = self.at();
        self.body.extend_from_slice(bytes);
        at
    }
}

/// Describes an image; [`build`](Self::build) makes the file.
///
/// Without further words it is a fixed image with a manifest and no segment,
/// and its entry is the start of the first executable segment.
#[derive(Clone, Debug)]
pub struct ElfBuilder {
    kind: u16,
    entry: Option<u64>,
    segments: Vec<(Program, Vec<u8>)>,
    notes: Vec<Vec<u8>>,
    rela: Vec<[u64; 3]>,
    relr: Vec<u64>,
    dynamic: Vec<[u64; 2]>,
    programs: Vec<Program>,
    symbols: Vec<(String, u64, u64)>,
}

impl Default for ElfBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl ElfBuilder {
    /// An image named `test`, version `1.0`, with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self {
            kind: ET_EXEC,
            entry: None,
            segments: Vec::new(),
            notes: vec![Note::new(Manifest::new("test", "1.0")).as_bytes().to_vec()],
            rela: Vec::new(),
            relr: Vec::new(),
            dynamic: Vec::new(),
            programs: Vec::new(),
            symbols: Vec::new(),
        }
    }

    /// A guest of raw machine code at [`CODE_ADDR`], entered at its start.
    #[must_use]
    pub fn guest(code: &[u8]) -> Self {
        Self::new().code(code)
    }

    /// Adds code at [`CODE_ADDR`].
    #[must_use]
    pub fn code(self, code: &[u8]) -> Self {
        self.segment(CODE_ADDR, R | X, code, len(code))
    }

    /// Adds bytes that the guest can read and write.
    #[must_use]
    pub fn data(self, addr: u64, bytes: &[u8]) -> Self {
        self.segment(addr, R | W, bytes, len(bytes))
    }

    /// Adds a segment: `bytes`, then zeros up to `mem_len` bytes.
    #[must_use]
    pub fn segment(mut self, addr: u64, flags: u32, bytes: &[u8], mem_len: u64) -> Self {
        let program = Program {
            kind: PT_LOAD,
            flags,
            vaddr: addr,
            paddr: addr,
            filesz: len(bytes),
            memsz: mem_len,
            align: SEGMENT_ALIGN,
            ..Program::default()
        };
        self.segments.push((program, bytes.to_vec()));
        self
    }

    /// Makes it an image that the host moves.
    #[must_use]
    pub fn relocatable(mut self) -> Self {
        self.kind = ET_DYN;
        self
    }

    /// Sets the address of the first instruction.
    #[must_use]
    pub fn entry(mut self, entry: u64) -> Self {
        self.entry = Some(entry);
        self
    }

    /// Replaces the manifest.
    #[must_use]
    pub fn manifest(self, manifest: Manifest) -> Self {
        self.without_notes().note(Note::new(manifest).as_bytes())
    }

    /// Takes every note out, the manifest's too.
    #[must_use]
    pub fn without_notes(mut self) -> Self {
        self.notes.clear();
        self
    }

    /// Adds a segment of notes (`PT_NOTE`) of these bytes.
    #[must_use]
    pub fn note(mut self, bytes: &[u8]) -> Self {
        self.notes.push(bytes.to_vec());
        self
    }

    /// Adds a relocation to the RELA table.
    #[must_use]
    pub fn relocation(self, offset: u64, addend: u64) -> Self {
        self.rela(offset, R_X86_64_RELATIVE, addend)
    }

    /// Adds a relocation of any type.
    #[must_use]
    pub fn rela(mut self, offset: u64, kind: u32, addend: u64) -> Self {
        self.rela.push([offset, u64::from(kind), addend]);
        self
    }

    /// Adds entries to the RELR table.
    #[must_use]
    pub fn relr(mut self, entries: &[u64]) -> Self {
        self.relr.extend_from_slice(entries);
        self
    }

    /// Adds an entry to the dynamic section, before those of the tables.
    #[must_use]
    pub fn dynamic(mut self, tag: u64, value: u64) -> Self {
        self.dynamic.push([tag, value]);
        self
    }

    /// Adds a program header behind all others.
    #[must_use]
    pub fn program(mut self, program: Program) -> Self {
        self.programs.push(program);
        self
    }

    /// Marks a part of a segment as read-only after relocation.
    #[must_use]
    pub fn relro(self, addr: u64, mem_len: u64) -> Self {
        self.program(Program {
            kind: PT_GNU_RELRO,
            flags: R,
            vaddr: addr,
            memsz: mem_len,
            ..Program::default()
        })
    }

    /// Names a function.
    #[must_use]
    pub fn symbol(mut self, name: &str, addr: u64, size: u64) -> Self {
        self.symbols.push((name.to_owned(), addr, size));
        self
    }

    /// Makes the file.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        self.elf().to_bytes()
    }

    /// Makes the file after `edit` has had its way with the parts.
    #[must_use]
    pub fn edited(&self, edit: impl FnOnce(&mut Elf)) -> Vec<u8> {
        let mut elf = self.elf();
        edit(&mut elf);
        elf.to_bytes()
    }

    /// Lays the file out.
    #[must_use]
    pub fn elf(&self) -> Elf {
        let mut parts: Vec<(Program, Vec<u8>)> = self.segments.clone();
        parts.extend(self.notes.iter().map(|note| {
            let program = Program {
                kind: PT_NOTE,
                flags: R,
                filesz: len(note),
                memsz: len(note),
                align: 4,
                ..Program::default()
            };
            (program, note.clone())
        }));
        let mut programs: Vec<Program> = parts.iter().map(|(program, _)| *program).collect();
        let tables = self.tables();
        if let Some(tables) = &tables {
            programs.extend([tables.segment, tables.dynamic]);
        }
        programs.extend(&self.programs);
        let mut elf = Elf {
            header: self.header(programs.len()),
            programs,
            sections: Vec::new(),
            body: Vec::new(),
        };
        for (at, (program, bytes)) in parts.iter().enumerate() {
            let offset = elf.append(bytes, program.vaddr);
            elf.place(at, offset);
        }
        if let Some(tables) = &tables {
            let offset = elf.append(&tables.bytes, 0);
            elf.place(parts.len(), offset);
            elf.place(parts.len().saturating_add(1), offset);
        }
        self.append_symbols(&mut elf);
        elf
    }

    fn header(&self, programs: usize) -> Header {
        let first_code = || {
            let mut programs = self.segments.iter().map(|(program, _)| program);
            programs.find(|program| program.flags & X != 0)
        };
        Header {
            ident: *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
            kind: self.kind,
            machine: EM_X86_64,
            version: 1,
            entry: self
                .entry
                .or_else(|| first_code().map(|program| program.vaddr))
                .unwrap_or_default(),
            phoff: 64,
            shoff: 0,
            flags: 0,
            ehsize: 64,
            phentsize: 56,
            phnum: count(programs),
            shentsize: 64,
            shnum: 0,
            shstrndx: 0,
        }
    }

    fn tables(&self) -> Option<Tables> {
        if self.rela.is_empty() && self.relr.is_empty() && self.dynamic.is_empty() {
            return None;
        }
        let mut entries = self.dynamic.clone();
        let entry_count = entries
            .len()
            .saturating_add(if self.rela.is_empty() { 0 } else { 3 })
            .saturating_add(if self.relr.is_empty() { 0 } else { 3 })
            .saturating_add(1);
        let dynamic_len = len(vec![[0_u64; 2]; entry_count].as_bytes());
        let rela_len = len(self.rela.as_bytes());
        let rela_addr = TABLES_ADDR.saturating_add(dynamic_len);
        if !self.rela.is_empty() {
            entries.extend([
                [DT_RELA, rela_addr],
                [DT_RELASZ, rela_len],
                [DT_RELAENT, 24],
            ]);
        }
        if !self.relr.is_empty() {
            let relr_addr = rela_addr.saturating_add(rela_len);
            let relr_len = len(self.relr.as_bytes());
            entries.extend([[DT_RELR, relr_addr], [DT_RELRSZ, relr_len], [DT_RELRENT, 8]]);
        }
        entries.push([DT_NULL, 0]);
        let bytes = [
            entries.as_bytes(),
            self.rela.as_bytes(),
            self.relr.as_bytes(),
        ]
        .concat();
        let segment = Program {
            kind: PT_LOAD,
            flags: R,
            vaddr: TABLES_ADDR,
            paddr: TABLES_ADDR,
            filesz: len(&bytes),
            memsz: len(&bytes),
            align: SEGMENT_ALIGN,
            ..Program::default()
        };
        let dynamic = Program {
            kind: PT_DYNAMIC,
            filesz: dynamic_len,
            memsz: dynamic_len,
            ..segment
        };
        Some(Tables {
            segment,
            dynamic,
            bytes,
        })
    }

    fn append_symbols(&self, elf: &mut Elf) {
        if self.symbols.is_empty() {
            return;
        }
        let mut names = vec![0];
        let mut table = Symbol {
            name: 0,
            info: 0,
            other: 0,
            shndx: 0,
            value: 0,
            size: 0,
        }
        .as_bytes()
        .to_vec();
        for (name, value, size) in &self.symbols {
            let symbol = Symbol {
                name: u32::try_from(names.len()).unwrap_or_default(),
                info: STT_FUNC,
                other: 0,
                shndx: 1,
                value: *value,
                size: *size,
            };
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            table.extend_from_slice(symbol.as_bytes());
        }
        let symtab = Section {
            kind: 2,
            offset: elf.append(&table, 0),
            size: len(&table),
            link: 2,
            entsize: 24,
            ..Section::default()
        };
        let strtab = Section {
            kind: 3,
            offset: elf.append(&names, 0),
            size: len(&names),
            ..Section::default()
        };
        elf.sections = vec![Section::default(), symtab, strtab];
        elf.header.shoff = elf.append(&[], 0);
        elf.header.shnum = count(elf.sections.len());
    }
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

fn count(items: usize) -> u16 {
    u16::try_from(items).unwrap_or(u16::MAX)
}
