//! The boot information of an hvt guest (Solo5's `struct hvt_boot_info`), with manifest
//! and arguments behind it.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes, Unaligned};

use super::layout::BOOT_AT;
use crate::Error;
use crate::boot::Args;
use crate::device::Backend;
use crate::image::Image;
use crate::layout::Layout;
use crate::memory::{Gpa, GuestMemory, u64_of};

/// Bytes of a block, as `struct mft_block_basic` tells it.
pub(super) const BLOCK_SIZE: u16 = 512;

/// What the guest finds at [`BOOT_AT`]. Without rings for frames: a guest that is not
/// offered them asks by hypercall.
#[derive(Clone, Copy, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Boot {
    mem_size: U64,
    kernel_end: U64,
    cpu_cycle_freq: U64,
    cmdline: U64,
    mft: U64,
    host_features: U32,
    guest_features: U32,
    net_ring: U64,
}

const BOOT_LEN: u64 = 56;
const MANIFEST_HEADER_LEN: u64 = 8;
const ENTRY_LEN: u64 = 104;
const _: () = assert!(size_of::<Boot>() == 56);

/// Bytes of what [`fill`] writes, with so many devices and bytes of arguments.
pub(super) fn len(devices: usize, args_len: u64) -> u64 {
    let entries = u64_of(devices).saturating_add(1);
    BOOT_LEN
        .saturating_add(MANIFEST_HEADER_LEN)
        .saturating_add(entries.saturating_mul(ENTRY_LEN))
        .saturating_add(args_len.max(1))
}

/// Writes it.
///
/// # Errors
///
/// When it does not fit, which the layout rules out.
pub(crate) fn fill(
    memory: &GuestMemory,
    layout: &Layout,
    image: &Image,
    args: &Args,
    backends: &[Backend],
    tsc_khz: u32,
) -> Result<(), Error> {
    let manifest = manifest(image, backends);
    let mft = BOOT_AT.saturating_add(BOOT_LEN);
    let cmdline = mft.saturating_add(u64_of(manifest.len()));
    let boot = Boot {
        mem_size: layout.heap.addr.saturating_add(layout.heap.len).into(),
        kernel_end: layout.heap.addr.into(),
        cpu_cycle_freq: u64::from(tsc_khz).saturating_mul(1000).into(),
        cmdline: cmdline.into(),
        mft: mft.into(),
        host_features: 0.into(),
        guest_features: 0.into(),
        net_ring: 0.into(),
    };
    memory.write(Gpa(BOOT_AT), boot.as_bytes())?;
    memory.write(Gpa(mft), &manifest)?;
    memory.write(Gpa(cmdline), &args.line())
}

/// `struct mft` as the guest may know it: what its image declares, with what stands
/// behind each device, and nothing of the host's.
fn manifest(image: &Image, backends: &[Backend]) -> Vec<u8> {
    let devices = &image.manifest().devices;
    let entries = u32::try_from(devices.len()).unwrap_or(0).saturating_add(1);
    let mut bytes = Vec::new();
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(entries.to_le_bytes());
    entry(&mut bytes, "", 0x4000_0000, [0; 16], false);
    for (device, backend) in devices.iter().zip(backends) {
        let mut properties = [0; 16];
        let (kind, of): (u32, Vec<u8>) = match backend {
            Backend::Block(disk) => {
                let size = BLOCK_SIZE.to_le_bytes();
                (
                    1,
                    disk.len().to_le_bytes().into_iter().chain(size).collect(),
                )
            }
            Backend::Net(frames) => {
                let mtu = frames.mtu().to_le_bytes();
                (2, frames.mac().into_iter().chain(mtu).collect())
            }
            _ => (0, Vec::new()),
        };
        for (to, from) in properties.iter_mut().zip(of) {
            *to = from;
        }
        entry(&mut bytes, &device.name, kind, properties, true);
    }
    bytes
}

/// `struct mft_entry`.
fn entry(bytes: &mut Vec<u8>, name: &str, kind: u32, properties: [u8; 16], attached: bool) {
    let start = bytes.len();
    bytes.extend(name.bytes());
    bytes.resize(start.saturating_add(68), 0);
    bytes.extend(kind.to_le_bytes());
    bytes.extend(properties);
    bytes.extend([0; 8]);
    bytes.extend([u8::from(attached), 0, 0, 0, 0, 0, 0, 0]);
}
