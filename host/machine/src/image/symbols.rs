//! Names for addresses, for reports on faults.
//!
//! Symbols are the least trustworthy part of an image, and nothing depends on
//! them: whatever makes no sense counts as absent, and what a name can put on an
//! operator's terminal is limited.

use std::fmt::{self, Write};

use goblin::elf::section_header::{SHN_UNDEF, SHT_STRTAB, SHT_SYMTAB, SectionHeader};
use goblin::elf::sym::{STT_FUNC, STT_OBJECT, Symtab};
use goblin::elf64::header::Header as ElfHeader;
use goblin::elf64::section_header::SIZEOF_SHDR;
use goblin::elf64::sym::SIZEOF_SYM;

use super::file::{self, CTX};
use super::segments::{self, Segment};

/// Most entries of a symbol table that are looked at.
pub const SYMBOLS_MAX: usize = 1_000_000;

/// Most characters of a name.
pub const SYMBOL_CHARS_MAX: usize = 256;

/// Most bytes of a name in the file; the rest is cut off before demangling.
const MANGLED_BYTES_MAX: usize = 4096;

/// How many symbols that start below an address are asked whether they cover it.
/// Symbols nest rarely, and never deeply.
const NESTING_MAX: usize = 16;

/// The functions and objects of an image, by address.
///
/// Takes 24 bytes per symbol, for at most [`SYMBOLS_MAX`] of them.
pub struct Symbols<'a> {
    segments: &'a [Segment],
    names: &'a [u8],
    /// Sorted by address, then length.
    symbols: Vec<Symbol>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Symbol {
    addr: u64,
    len: u64,
    name_at: u32,
}

impl<'a> Symbols<'a> {
    pub(super) fn read(bytes: &'a [u8], segments: &'a [Segment]) -> Self {
        let (table, names) = tables(bytes).unwrap_or_default();
        Self {
            segments,
            names,
            symbols: symbols(table, segments),
        }
    }

    /// Names the function or object that an address of the image (before it is
    /// moved) is in, and the offset from its start in bytes.
    ///
    /// The name is demangled, at most [`SYMBOL_CHARS_MAX`] characters, and holds
    /// only letters, digits, spaces and ASCII punctuation.
    #[must_use]
    pub fn lookup(&self, addr: u64) -> Option<(String, u64)> {
        let segment = segments::containing(self.segments, addr)?;
        let after = self.symbols.partition_point(|symbol| symbol.addr <= addr);
        let (symbol, offset) = self
            .symbols
            .get(..after)?
            .iter()
            .rev()
            .take(NESTING_MAX)
            .take_while(|symbol| symbol.addr >= segment.addr)
            .filter_map(|symbol| Some((symbol, addr.checked_sub(symbol.addr)?)))
            // Assembly often gives no length: such a symbol reaches to the next.
            .find(|(symbol, offset)| symbol.len == 0 || *offset < symbol.len)?;
        let name = name(self.names, symbol.name_at)?;
        Some((name, offset))
    }

    /// How many functions and objects have a name.
    #[must_use]
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Says whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }
}

impl fmt::Debug for Symbols<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Symbols")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// The bytes of the symbol table and of its string table.
fn tables(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let header = ElfHeader::parse(bytes).ok()?;
    // A count of 0 has another meaning to goblin: more than 0xff00 sections,
    // which no image has.
    if header.e_shnum == 0 || usize::from(header.e_shentsize) != SIZEOF_SHDR {
        return None;
    }
    let len = u64::from(header.e_shnum).checked_mul(u64::from(header.e_shentsize))?;
    let table = bytes.get(file::range(bytes.len(), header.e_shoff, len)?)?;
    let sections = SectionHeader::parse_from(table, 0, usize::from(header.e_shnum), CTX).ok()?;
    let section_bytes = |section: &SectionHeader| {
        bytes.get(file::range(
            bytes.len(),
            section.sh_offset,
            section.sh_size,
        )?)
    };
    let symtab = sections.iter().find(|s| s.sh_type == SHT_SYMTAB)?;
    if usize::try_from(symtab.sh_entsize) != Ok(SIZEOF_SYM) {
        return None;
    }
    let strtab = sections
        .get(usize::try_from(symtab.sh_link).ok()?)
        .filter(|section| section.sh_type == SHT_STRTAB)?;
    Some((section_bytes(symtab)?, section_bytes(strtab)?))
}

fn symbols(table: &[u8], segments: &[Segment]) -> Vec<Symbol> {
    let count = (table.len() / SIZEOF_SYM).min(SYMBOLS_MAX);
    let Ok(table) = Symtab::parse(table, 0, count, CTX) else {
        return Vec::new();
    };
    let mut symbols: Vec<_> = table
        .iter()
        .filter(|symbol| matches!(symbol.st_type(), STT_FUNC | STT_OBJECT))
        .filter(|symbol| symbol.st_shndx != usize::try_from(SHN_UNDEF).unwrap_or_default())
        .filter(|symbol| segments::containing(segments, symbol.st_value).is_some())
        .filter_map(|symbol| {
            Some(Symbol {
                addr: symbol.st_value,
                len: symbol.st_size,
                name_at: u32::try_from(symbol.st_name).ok()?,
            })
        })
        .collect();
    symbols.sort_unstable();
    symbols
}

fn name(names: &[u8], at: u32) -> Option<String> {
    let rest = names.get(usize::try_from(at).ok()?..)?;
    let rest = rest.get(..MANGLED_BYTES_MAX).unwrap_or(rest);
    let mangled = rest.split(|&byte| byte == 0).next()?;
    let mangled = String::from_utf8_lossy(mangled);
    let mut printable = Printable::default();
    // The one error is that the limit is reached: what is there is the name.
    let _ = write!(printable, "{:#}", rustc_demangle::demangle(&mangled));
    (!printable.text.is_empty()).then_some(printable.text)
}

/// Takes the first [`SYMBOL_CHARS_MAX`] characters and no control character,
/// escape sequence or change of writing direction.
#[derive(Default)]
struct Printable {
    text: String,
    chars: usize,
}

impl Write for Printable {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            if self.chars >= SYMBOL_CHARS_MAX {
                return Err(fmt::Error);
            }
            let printable = char == ' ' || char.is_ascii_graphic() || char.is_alphanumeric();
            self.text.push(if printable { char } else { '?' });
            self.chars = self.chars.saturating_add(1);
        }
        Ok(())
    }
}
