//! Filling a guest's memory before its first instruction.

use serde::{Deserialize, Serialize};
use wharf_abi::boot::ARGS_MAX;
use wharf_abi::manifest::{DEVICES_MAX, Name};
use wharf_abi::{AbiVersion, BootPage, Clock, DeviceEntry, Span};
use zerocopy::{FromBytes, IntoBytes};

use crate::Error;
use crate::descriptors::SystemPage;
use crate::image::Image;
use crate::layout::{Layout, MEMORY_DEFAULT};
use crate::machine::Origin;
use crate::memory::{GuestMemory, PAGE, u64_of};
use crate::space::Mapping;

/// Pages at the top of the stack that are made resident before the start, since
/// every guest touches them at once.
const STACK_PAGES_TOUCHED: u64 = 2;

/// A part of the image up to this size is made resident before the start, its
/// zeroes included. Of a larger one, which its author chooses, only what is
/// written becomes resident.
const IMAGE_TOUCHED: u64 = 64 * PAGE;

/// So many parts of the image at most: each is a call, and one of Solo5's images may have
/// tens of thousands.
const PARTS_TOUCHED: usize = 64;

/// Bytes of the boot page that this version of the contract fills in.
const BOOT_PAGE_LEN: u32 = 184;
const _: () = assert!(size_of::<BootPage>() == 184);

/// Where in the boot page the device table is: behind room for it to grow.
const DEVICES_AT: u64 = 1024;
const _: () = assert!(1024 + DEVICES_MAX * size_of::<DeviceEntry>() <= 4096);

/// What a guest gets besides its image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// Memory in bytes, a multiple of 4 KiB.
    pub memory: u64,
    /// Its arguments.
    pub args: Args,
    /// Which life of its task this is, from 1.
    pub generation: u64,
    /// Whether it may be given the state of the generation before. It then has
    /// memory for that on top.
    #[serde(default)]
    pub is_heir: bool,
}

impl Default for BootConfig {
    fn default() -> Self {
        Self {
            memory: MEMORY_DEFAULT,
            args: Args::default(),
            generation: 1,
            is_heir: false,
        }
    }
}

/// A guest's arguments, as its boot page carries them. Serialised they are a list of
/// strings, which is checked again on the way in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Args {
    /// NUL-terminated strings, one behind the other.
    block: Vec<u8>,
    count: u32,
}

/// These cannot be a guest's arguments.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// More than the boot page can carry.
    #[error("arguments of {len} bytes are too long: the most is {ARGS_MAX}")]
    TooLong {
        /// Bytes with terminators.
        len: u64,
    },
    /// A NUL byte would end the argument that holds it.
    #[error("argument {index} holds a NUL byte")]
    Nul {
        /// Which, from 1.
        index: usize,
    },
}

impl Args {
    /// Checks arguments and puts them into the boot page's form.
    ///
    /// # Errors
    ///
    /// [`ArgsError`].
    pub fn new<S: AsRef<str>>(args: impl IntoIterator<Item = S>) -> Result<Self, ArgsError> {
        let mut all = Self::default();
        for (index, arg) in (1..).zip(args) {
            let arg = arg.as_ref();
            if arg.contains('\0') {
                return Err(ArgsError::Nul { index });
            }
            all.block.extend(arg.bytes());
            all.block.push(0);
            all.count = all.count.saturating_add(1);
            if all.block.len() > ARGS_MAX {
                return Err(ArgsError::TooLong { len: all.len() });
            }
        }
        Ok(all)
    }

    /// Bytes of the block.
    pub(crate) fn len(&self) -> u64 {
        u64_of(self.block.len())
    }

    /// All of them as one NUL-terminated string with a space between two, as an hvt
    /// guest has them. Where one ends cannot be told there from a space in it.
    pub(crate) fn line(&self) -> Vec<u8> {
        let mut line = self.block.clone();
        if let Some((_, between)) = line.split_last_mut() {
            for byte in between.iter_mut().filter(|byte| **byte == 0) {
                *byte = b' ';
            }
        } else {
            line.push(0);
        }
        line
    }
}

impl TryFrom<Vec<String>> for Args {
    type Error = ArgsError;

    fn try_from(args: Vec<String>) -> Result<Self, ArgsError> {
        Self::new(args)
    }
}

impl From<Args> for Vec<String> {
    fn from(args: Args) -> Self {
        let strings = args.block.split_inclusive(|byte| *byte == 0);
        strings
            .map(|arg| arg.strip_suffix(&[0]).unwrap_or(arg))
            .map(|arg| String::from_utf8_lossy(arg).into_owned())
            .collect()
    }
}

/// Writes the image into `memory` as `layout` says, and makes resident what will be
/// touched.
pub(crate) fn load(memory: &GuestMemory, layout: &Layout, image: &Image) -> Result<(), Error> {
    populate(memory, layout);
    let mut mappings = layout.mappings.clone();
    mappings.sort_unstable_by_key(|mapping| mapping.addr);
    for segment in image.segments() {
        let addr = segment.addr.wrapping_add(layout.bias);
        write_mapped(memory, &mappings, addr, image.segment_bytes(segment))?;
    }
    for relocation in image.relocations() {
        let addr = relocation.offset.wrapping_add(layout.bias);
        let value = relocation.addend.wrapping_add(layout.bias);
        write_mapped(memory, &mappings, addr, &value.to_le_bytes())?;
    }
    Ok(())
}

/// Writes what the CPU believes of the host: system page and page tables.
pub(crate) fn fill_system(
    memory: &GuestMemory,
    layout: &Layout,
    system: &SystemPage,
) -> Result<(), Error> {
    memory.write(layout.system.gpa, &system.bytes)?;
    for (gpa, bytes) in layout.tables.pages() {
        memory.write(gpa, &bytes)?;
    }
    Ok(())
}

/// Writes the boot page, and what belongs to it, into `memory` as `layout` says.
pub(crate) fn fill(
    memory: &GuestMemory,
    layout: &Layout,
    image: &Image,
    origin: &Origin,
    clock: Clock,
    seed: [u8; 32],
) -> Result<(), Error> {
    let config = &origin.boot;
    let entries = device_entries(layout, image);
    memory.write(layout.boot.gpa.offset(DEVICES_AT), entries.as_bytes())?;
    let inherited = layout.inherited.filter(|_| origin.inherited > 0);
    let boot = BootPage {
        magic: BootPage::MAGIC,
        abi: AbiVersion::CURRENT,
        size: BOOT_PAGE_LEN,
        generation: config.generation,
        clock,
        seed,
        image: layout.image,
        stack: Span {
            addr: layout.stack.addr,
            len: layout.stack.len,
        },
        heap: layout.heap,
        args: Span {
            addr: layout.boot.addr.wrapping_add(PAGE),
            len: config.args.len(),
        },
        arg_count: config.args.count,
        device_count: u32::try_from(entries.len()).unwrap_or(0),
        devices: match entries.len() {
            0 => Span::default(),
            _ => Span {
                addr: layout.boot.addr.wrapping_add(DEVICES_AT),
                len: u64_of(entries.as_bytes().len()),
            },
        },
        inherited: inherited.map_or(Span::default(), |room| Span {
            addr: room.addr,
            len: origin.inherited,
        }),
    };
    memory.write(layout.boot.gpa, boot.as_bytes())?;
    memory.write(layout.boot.gpa.offset(PAGE), &config.args.block)
}

/// The device table: what the manifest declares, and where the pages are.
fn device_entries(layout: &Layout, image: &Image) -> Vec<DeviceEntry> {
    let declared = image.manifest().devices.iter();
    declared
        .zip(layout.device_pages())
        .map(|(device, (page, _))| DeviceEntry {
            kind: device.kind.raw(),
            reserved: [0; 6],
            name: abi_name(&device.name),
            page,
        })
        .collect()
}

/// A name as the contract has it. A checked image has none that does not fit.
fn abi_name(name: &str) -> Name<32> {
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    Name::read_from_bytes(&bytes).unwrap_or(Name::EMPTY)
}

/// Makes resident, in few calls, what is about to be written or touched.
fn populate(memory: &GuestMemory, layout: &Layout) {
    let touched = STACK_PAGES_TOUCHED
        .saturating_mul(PAGE)
        .min(layout.stack.len);
    populate_host(memory, layout, touched);
    let is_touched = |mapping: &&Mapping| {
        let in_image = mapping.addr >= layout.image.addr
            && mapping.end() <= layout.image.addr.saturating_add(layout.image.len);
        in_image && mapping.len <= IMAGE_TOUCHED
    };
    let parts = layout.mappings.iter().filter(is_touched);
    for mapping in parts.take(PARTS_TOUCHED) {
        memory.populate(mapping.gpa, mapping.gpa.offset(mapping.len));
    }
}

/// Makes resident what [`fill_system`] and [`fill`] write, and so much of the stack's top, which
/// lies before the page tables.
pub(crate) fn populate_host(memory: &GuestMemory, layout: &Layout, stack: u64) {
    let stack_end = layout.stack.gpa.offset(layout.stack.len);
    let stack_top = layout
        .stack
        .gpa
        .offset(layout.stack.len.saturating_sub(stack));
    memory.populate(stack_top, stack_end.offset(layout.tables.len()));
    let mut first = layout.system;
    let parts = [layout.fault_stack, layout.boot].into_iter();
    for part in parts.chain(layout.devices) {
        if first.gpa.offset(first.len) == part.gpa {
            first.len = first.len.saturating_add(part.len);
        } else {
            memory.populate(first.gpa, first.gpa.offset(first.len));
            first = part;
        }
    }
    memory.populate(first.gpa, first.gpa.offset(first.len));
}

/// The one of mappings in ascending order that holds `addr`.
fn find(mappings: &[Mapping], addr: u64) -> Option<&Mapping> {
    let after = mappings.partition_point(|mapping| mapping.addr <= addr);
    let mapping = mappings.get(after.checked_sub(1)?)?;
    (addr < mapping.end()).then_some(mapping)
}

/// Copies `bytes` to a guest-virtual address, whoever may write there.
fn write_mapped(
    memory: &GuestMemory,
    mappings: &[Mapping],
    addr: u64,
    bytes: &[u8],
) -> Result<(), Error> {
    let (mut addr, mut rest) = (addr, bytes);
    while !rest.is_empty() {
        let outside = || Error::Outside {
            at: addr,
            len: rest.len(),
        };
        let mapping = find(mappings, addr).ok_or_else(outside)?;
        let room = usize::try_from(mapping.end().saturating_sub(addr)).unwrap_or(usize::MAX);
        let (now, later) = rest.split_at(room.min(rest.len()));
        memory.write(mapping.gpa.offset(addr.saturating_sub(mapping.addr)), now)?;
        addr = mapping.end();
        rest = later;
    }
    Ok(())
}
