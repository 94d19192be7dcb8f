//! Filling a guest's memory before its first instruction.

use wharf_abi::{AbiVersion, BootPage, Clock, Span};
use zerocopy::IntoBytes;

use crate::Error;
use crate::descriptors::SystemPage;
use crate::image::{Access, Image};
use crate::layout::{Layout, LayoutError, MEMORY_DEFAULT};
use crate::memory::{GuestMemory, PAGE};
use crate::space::Mapping;

/// Pages at the top of the stack that are made resident before the start, since
/// every guest touches them at once.
const STACK_PAGES_TOUCHED: u64 = 2;

/// A writable part of the image up to this size is made resident before the
/// start, its zeroes included; a larger one is left to be touched.
const RW_TOUCHED: u64 = 16 * PAGE;

/// What a guest gets besides its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootConfig {
    /// Memory in bytes, a multiple of 4 KiB.
    pub memory: u64,
    /// Arguments; none holds a NUL byte.
    pub args: Vec<String>,
    /// Which life of its task this is, from 1.
    pub generation: u64,
}

impl Default for BootConfig {
    fn default() -> Self {
        Self {
            memory: MEMORY_DEFAULT,
            args: Vec::new(),
            generation: 1,
        }
    }
}

impl BootConfig {
    /// The arguments as the boot page carries them, each NUL-terminated. A NUL
    /// inside one would make two of it, so it ends there.
    pub(crate) fn args_block(&self) -> Vec<u8> {
        let mut block = Vec::new();
        for arg in &self.args {
            block.extend(arg.bytes().take_while(|&byte| byte != 0));
            block.push(0);
        }
        block
    }

    pub(crate) fn args_len(&self) -> Result<u64, LayoutError> {
        let len = self.args.iter().fold(0_u64, |len, arg| {
            let arg = u64::try_from(arg.len()).unwrap_or(u64::MAX);
            len.saturating_add(arg).saturating_add(1)
        });
        let most = wharf_abi::boot::ARGS_MAX.try_into().unwrap_or(u64::MAX);
        if len > most {
            Err(LayoutError::ArgsTooLong { len })
        } else {
            Ok(len)
        }
    }
}

/// Writes image, tables and boot page into `memory` as `layout` says.
pub(crate) fn fill(
    memory: &GuestMemory,
    layout: &Layout,
    system: &SystemPage,
    image: &Image,
    config: &BootConfig,
    clock: Clock,
    seed: [u8; 32],
) -> Result<(), Error> {
    populate(memory, layout);
    memory.write(layout.system.gpa, &system.bytes)?;
    for (gpa, bytes) in layout.tables.pages() {
        memory.write(gpa, &bytes)?;
    }
    for segment in image.segments() {
        let addr = segment.addr.wrapping_add(layout.bias);
        write_mapped(memory, &layout.mappings, addr, image.segment_bytes(segment))?;
    }
    for relocation in image.relocations() {
        let addr = relocation.offset.wrapping_add(layout.bias);
        let value = relocation.addend.wrapping_add(layout.bias);
        write_mapped(memory, &layout.mappings, addr, &value.to_le_bytes())?;
    }

    let args = config.args_block();
    let boot = BootPage {
        magic: BootPage::MAGIC,
        abi: AbiVersion::CURRENT,
        size: size_of::<BootPage>().try_into().unwrap_or(u32::MAX),
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
            len: args.len().try_into().unwrap_or(u64::MAX),
        },
        arg_count: config.args.len().try_into().unwrap_or(u32::MAX),
        device_count: 0,
        devices: Span::default(),
        inherited: Span::default(),
    };
    memory.write(layout.boot.gpa, boot.as_bytes())?;
    memory.write(layout.boot.gpa.offset(PAGE), &args)
}

/// Makes resident, in few calls, what is about to be written or touched.
fn populate(memory: &GuestMemory, layout: &Layout) {
    let stack_end = layout.stack.gpa.offset(layout.stack.len);
    let touched = STACK_PAGES_TOUCHED
        .saturating_mul(PAGE)
        .min(layout.stack.len);
    let stack_top = layout
        .stack
        .gpa
        .offset(layout.stack.len.saturating_sub(touched));
    memory.populate(stack_top, stack_end.offset(layout.tables.len()));
    memory.populate(layout.system.gpa, layout.boot.gpa.offset(layout.boot.len));
    for mapping in &layout.mappings {
        let in_image = mapping.addr >= layout.image.addr
            && mapping.end() <= layout.image.addr.saturating_add(layout.image.len);
        if in_image && (mapping.access != Access::ReadWrite || mapping.len <= RW_TOUCHED) {
            memory.populate(mapping.gpa, mapping.gpa.offset(mapping.len));
        }
    }
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
        let mapping = mappings
            .iter()
            .find(|m| m.addr <= addr && addr < m.end())
            .ok_or_else(outside)?;
        let room = usize::try_from(mapping.end().saturating_sub(addr)).unwrap_or(usize::MAX);
        let (now, later) = rest.split_at(room.min(rest.len()));
        memory.write(mapping.gpa.offset(addr.saturating_sub(mapping.addr)), now)?;
        addr = mapping.end();
        rest = later;
    }
    Ok(())
}
