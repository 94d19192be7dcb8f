//! Guests for Solo5's hvt contract: images, and the words of their code.
//!
//! ```
//! use wharf_tests::guest::assemble;
//! use wharf_tests::hvt::{HvtBuilder, halt};
//!
//! let image = HvtBuilder::guest(&assemble(|a| halt(a, 7))).build();
//! ```

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, ax, ds, dx, eax, ecx, es, esp, fword_ptr, qword_ptr, rax, rdx, rsp, ss,
};

use crate::elf::{Elf, ElfBuilder, PT_LOAD, Program, R, W};

/// Type of a block device in a manifest.
pub const BLOCK: u32 = 1;
/// Type of a net device in a manifest.
pub const NET: u32 = 2;
/// Type of the entry that every manifest begins with.
pub const RESERVED_FIRST: u32 = 0x4000_0000;

/// Call number of a look at the clock on the wall.
pub const WALLTIME: u16 = 1;
/// Call number of a write to the console.
pub const PUTS: u16 = 2;
/// Call number of a wait for frames.
pub const POLL: u16 = 3;
/// Call number of a write to a disk.
pub const BLOCK_WRITE: u16 = 4;
/// Call number of a read from a disk.
pub const BLOCK_READ: u16 = 5;
/// Call number of a frame to be sent.
pub const NET_WRITE: u16 = 6;
/// Call number of a frame to be received.
pub const NET_READ: u16 = 7;
/// Call number of the end.
pub const HALT: u16 = 8;

/// Port of call number 0.
pub const PORT_BASE: u16 = 0x500;

/// Describes an image; [`build`](Self::build) makes the file.
#[derive(Clone, Debug)]
pub struct HvtBuilder {
    elf: ElfBuilder,
    abi: Vec<u8>,
    manifest: Vec<u8>,
    entries: u32,
}

impl HvtBuilder {
    /// A guest of raw machine code at [`CODE_ADDR`](crate::elf::CODE_ADDR), entered at
    /// its start, without a device.
    #[must_use]
    pub fn guest(code: &[u8]) -> Self {
        Self {
            elf: ElfBuilder::guest(code).without_notes(),
            abi: abi_note(1, 2),
            manifest: entry(b"", RESERVED_FIRST),
            entries: 1,
        }
    }

    /// Adds bytes that the guest can read and write.
    #[must_use]
    pub fn data(self, addr: u64, bytes: &[u8]) -> Self {
        self.segment(addr, R | W, bytes, bytes.len() as u64)
    }

    /// Adds a segment: `bytes`, then zeros up to `mem_len` bytes.
    #[must_use]
    pub fn segment(mut self, addr: u64, flags: u32, bytes: &[u8], mem_len: u64) -> Self {
        self.elf = self.elf.segment(addr, flags, bytes, mem_len);
        self
    }

    /// Adds a program header behind all others.
    #[must_use]
    pub fn program(mut self, program: Program) -> Self {
        self.elf = self.elf.program(program);
        self
    }

    /// Names a function.
    #[must_use]
    pub fn symbol(mut self, name: &str, addr: u64, size: u64) -> Self {
        self.elf = self.elf.symbol(name, addr, size);
        self
    }

    /// Adds a device to the manifest.
    #[must_use]
    pub fn device(self, kind: u32, name: &str) -> Self {
        self.entry(&entry(name.as_bytes(), kind))
    }

    /// Adds an entry of any bytes to the manifest.
    #[must_use]
    pub fn entry(mut self, entry: &[u8]) -> Self {
        self.manifest.extend_from_slice(entry);
        self.entries += 1;
        self
    }

    /// Takes the reserved entry out that the manifest begins with.
    #[must_use]
    pub fn without_first_entry(mut self) -> Self {
        self.manifest.clear();
        self.entries = 0;
        self
    }

    /// Replaces the ABI note.
    #[must_use]
    pub fn abi(mut self, note: &[u8]) -> Self {
        self.abi = note.to_vec();
        self
    }

    /// Makes the file.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        self.edited(|_| ())
    }

    /// Makes the file after `edit` has had its way with the parts.
    #[must_use]
    pub fn edited(&self, edit: impl FnOnce(&mut Elf)) -> Vec<u8> {
        let manifest = manifest_note(1, self.entries, &self.manifest);
        self.with_notes(&[&self.abi, &manifest], edit)
    }

    /// Makes the file with other notes, each in a program header of its own.
    #[must_use]
    pub fn with_notes(&self, notes: &[&[u8]], edit: impl FnOnce(&mut Elf)) -> Vec<u8> {
        let builder = self.elf.clone();
        let all = notes.iter().fold(builder, |elf, note| elf.note(note));
        all.edited(|elf| {
            for program in elf
                .programs
                .iter_mut()
                .filter(|it| it.kind == PT_LOAD && it.memsz > 0)
            {
                program.align = 4096;
            }
            edit(elf);
        })
    }
}

/// A note of Solo5's of any kind: `desc` begins where the header ends.
#[must_use]
pub fn note(kind: &[u8; 4], desc: &[u8]) -> Vec<u8> {
    let len = u32::try_from(desc.len()).expect("a short note");
    [
        &6_u32.to_le_bytes(),
        &len.to_le_bytes(),
        kind.as_slice(),
        b"Solo5\0\0\0",
        desc,
    ]
    .concat()
}

/// The note that says for what an image was built: a target, and a version of its ABI.
#[must_use]
pub fn abi_note(target: u32, version: u32) -> Vec<u8> {
    let words = [target, version, 0, 0].map(u32::to_le_bytes);
    note(b"ABI1", &words.concat())
}

/// The note with a manifest of this version, which says that it has so many entries.
#[must_use]
pub fn manifest_note(version: u32, entries: u32, bytes: &[u8]) -> Vec<u8> {
    let words = [0, version, entries].map(u32::to_le_bytes).concat();
    note(b"MFT1", &[&words, bytes].concat())
}

/// An entry of a manifest.
///
/// # Panics
///
/// When the name has more than 68 bytes.
#[must_use]
pub fn entry(name: &[u8], kind: u32) -> Vec<u8> {
    let mut entry = name.to_vec();
    assert!(entry.len() <= 68, "a name that fits");
    entry.resize(68, 0);
    entry.extend(kind.to_le_bytes());
    entry.resize(104, 0);
    entry
}

/// Writes a call whose arguments are at `at`.
///
/// # Errors
///
/// Never: the registers exist.
pub fn call(a: &mut CodeAssembler, number: u16, at: u64) -> Result<(), IcedError> {
    a.mov(rax, at)?;
    a.mov(dx, u32::from(PORT_BASE + number))?;
    a.out(dx, eax)
}

/// Writes a call whose arguments, these words, are pushed, where they stay.
///
/// # Errors
///
/// Never: the registers exist.
pub fn call_with(a: &mut CodeAssembler, number: u16, words: &[u64]) -> Result<(), IcedError> {
    for word in words.iter().rev() {
        a.mov(rax, *word)?;
        a.push(rax)?;
    }
    a.mov(eax, esp)?;
    a.mov(dx, u32::from(PORT_BASE + number))?;
    a.out(dx, eax)
}

/// Writes the end, with a status.
///
/// # Errors
///
/// Never: the registers exist.
pub fn halt(a: &mut CodeAssembler, status: u32) -> Result<(), IcedError> {
    call_with(a, HALT, &[0, u64::from(status)])
}

/// Writes some of the guest's memory to the console.
///
/// # Errors
///
/// Never: the registers exist.
pub fn puts(a: &mut CodeAssembler, addr: u64, len: u64) -> Result<(), IcedError> {
    call_with(a, PUTS, &[addr, len])?;
    a.add(rsp, 16)
}

/// Writes `words` words from the top of the stack on to the console.
///
/// # Errors
///
/// Never: the registers exist.
pub fn puts_stack(a: &mut CodeAssembler, words: u64) -> Result<(), IcedError> {
    a.mov(rax, rsp)?;
    let len = i32::try_from(words * 8).expect("a few words");
    a.push(len)?;
    a.push(rax)?;
    a.mov(eax, esp)?;
    a.mov(dx, u32::from(PORT_BASE + PUTS))?;
    a.out(dx, eax)?;
    a.add(rsp, 16)
}

/// Where a guest that starts up has its tables.
pub const TABLES: u64 = 0x50_0000;

/// Writes what Solo5's bindings do before anything else, with these tables in memory:
/// a GDT of its own, segments, a task, an IDT with a gate for each exception, and a
/// base for thread-local storage.
///
/// # Errors
///
/// Never: the registers exist.
pub fn start_up(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ecx, 0xC000_0100_u32)?;
    a.mov(eax, 0_u32)?;
    a.mov(rdx, 0_u64)?;
    a.wrmsr()?;
    a.mov(rdx, TABLES + 0x800)?;
    a.lgdt(fword_ptr(rdx))?;
    a.push(8)?;
    let mut here = a.create_label();
    a.lea(rax, qword_ptr(here))?;
    a.push(rax)?;
    a.retf()?;
    a.set_label(&mut here)?;
    a.mov(eax, 0x10_u32)?;
    a.mov(ss, eax)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(eax, 0x18_u32)?;
    a.ltr(ax)?;
    a.mov(rdx, TABLES + 0x810)?;
    a.lidt(fword_ptr(rdx))
}

/// The tables that [`start_up`] loads: GDT, TSS, IDT, and the operands that point to
/// them. Every gate leads to `handler` on stack 2, which ends at [`HANDLER_STACK`].
#[must_use]
pub fn tables(handler: u64) -> Vec<u8> {
    let mut page = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    let tss = TABLES + 0x100;
    put(0x08, &0x00AF_9900_0000_FFFF_u64.to_le_bytes());
    put(0x10, &0x00CF_9300_0000_FFFF_u64.to_le_bytes());
    put(
        0x18,
        &(0x8900_0000_0067 | (tss & 0xFF_FFFF) << 16).to_le_bytes(),
    );
    put(0x100 + 0x2C, &HANDLER_STACK.to_le_bytes());
    for vector in 0..21 {
        let gate =
            handler & 0xFFFF | 8 << 16 | 2 << 32 | 0x8E << 40 | (handler >> 16 & 0xFFFF) << 48;
        put(0x200 + vector * 16, &gate.to_le_bytes());
        put(0x208 + vector * 16, &(handler >> 32).to_le_bytes());
    }
    put(0x800, &0x2F_u16.to_le_bytes());
    put(0x802, &TABLES.to_le_bytes());
    put(0x810, &0x2FF_u16.to_le_bytes());
    put(0x812, &(TABLES + 0x200).to_le_bytes());
    page
}

/// Where the stack of [`tables`]' handlers ends.
pub const HANDLER_STACK: u64 = TABLES + 0x2000;
