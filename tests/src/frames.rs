//! Guests of a few instructions with an Ethernet port, called `lan`: some send what they
//! should not, some do not listen.

use iced_x86::code_asm::{ch, cx, dword_ptr, eax, ecx, qword_ptr, rax, rbx, rdi, rsi, word_ptr};
use wharf_abi::device::{
    DeviceSetup, FEATURE_EVENT_IDX, FEATURE_VERSION_1, QUEUES_MAX, QueueSetup, STATUS_DRIVER_OK,
};
use wharf_abi::hypercall::FOREVER;
use wharf_abi::net::{HEADER_LEN, QUEUE_RECEIVE, QUEUE_TRANSMIT};
use wharf_abi::{DeviceKind, Hypercall, Manifest};
use zerocopy::IntoBytes;

use crate::elf::ElfBuilder;
use crate::guest::{assemble, call};

/// Everything that a made guest's rings are made of, in one writable segment.
const DESCRIPTORS: u64 = 0x50_0000;
const AVAILABLE: u64 = 0x50_1000;
const USED: u64 = 0x50_2000;
const PACKET: u64 = 0x50_3000;
const SETUP: u64 = 0x50_4000;
const END: u64 = 0x50_5000;

const SIZE: u32 = 256;
/// Frames that are sent between two waits.
pub const BURST: u8 = 128;
const FRAME_LEN: usize = 1000;

/// The memory of a guest with one queue, in which every entry of the ring is the same
/// broadcast.
fn rings(queue: u16) -> Vec<u8> {
    let mut memory = vec![0_u8; (END - DESCRIPTORS) as usize];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = (at - DESCRIPTORS) as usize;
        memory[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let mut queues = [QueueSetup::default(); QUEUES_MAX];
    queues[usize::from(queue)] = QueueSetup {
        size: SIZE,
        enabled: 1,
        descriptors: DESCRIPTORS,
        driver_area: AVAILABLE,
        device_area: USED,
    };
    let setup = DeviceSetup {
        status: STATUS_DRIVER_OK,
        reserved: 0,
        features: FEATURE_VERSION_1 | FEATURE_EVENT_IDX,
        queues,
    };
    put(DESCRIPTORS, &PACKET.to_le_bytes());
    let len = u32::try_from(HEADER_LEN + FRAME_LEN).unwrap();
    put(DESCRIPTORS + 8, &len.to_le_bytes());
    put(PACKET + HEADER_LEN as u64, &[0xFF; 6]);
    put(SETUP, setup.as_bytes());
    memory
}

/// A guest that sends broadcasts without an end: in the name of another replica, or in
/// its own.
#[must_use]
pub fn flooder(as_replica: Option<u8>) -> Vec<u8> {
    sender(as_replica, 0)
}

/// A guest that sends [`BURST`] such broadcasts and then waits for ever.
#[must_use]
pub fn burst(as_replica: Option<u8>) -> Vec<u8> {
    sender(as_replica, FOREVER)
}

/// A guest that sends a burst before each wait, which takes so long.
fn sender(as_replica: Option<u8>, pause: u64) -> Vec<u8> {
    let code = assemble(|a| {
        let mut again = a.create_label();
        // The device's page, and its address there, behind which the source is.
        a.mov(rax, qword_ptr(rdi + 152))?;
        a.mov(rbx, qword_ptr(rax + 40))?;
        a.mov(eax, dword_ptr(rbx + 24))?;
        a.mov(cx, word_ptr(rbx + 28))?;
        if let Some(replica) = as_replica {
            a.mov(ch, u32::from(replica))?;
        }
        a.mov(rdi, PACKET + HEADER_LEN as u64 + 6)?;
        a.mov(dword_ptr(rdi), eax)?;
        a.mov(word_ptr(rdi + 4), cx)?;
        a.lea(rdi, qword_ptr(rbx + 256))?;
        a.mov(rsi, SETUP)?;
        a.mov(ecx, 272)?;
        a.rep().movsb()?;
        a.set_label(&mut again)?;
        a.mov(rdi, AVAILABLE + 2)?;
        a.add(word_ptr(rdi), i32::from(BURST))?;
        call(a, Hypercall::Wait, pause, 0)?;
        a.jmp(again)
    });
    image("flooder", &code, QUEUE_TRANSMIT)
}

/// A guest that listens and never gives the device a buffer.
#[must_use]
pub fn deaf() -> Vec<u8> {
    let code = assemble(|a| {
        a.mov(rax, qword_ptr(rdi + 152))?;
        a.mov(rdi, qword_ptr(rax + 40))?;
        a.add(rdi, 256)?;
        a.mov(rsi, SETUP)?;
        a.mov(ecx, 272)?;
        a.rep().movsb()?;
        call(a, Hypercall::Wait, FOREVER, 0)?;
        a.ud2()
    });
    image("deaf", &code, QUEUE_RECEIVE)
}

fn image(name: &str, code: &[u8], queue: u16) -> Vec<u8> {
    let manifest = Manifest::new(name, "1").with_device(DeviceKind::Net, "lan");
    ElfBuilder::guest(code)
        .data(DESCRIPTORS, &rings(queue))
        .manifest(manifest)
        .build()
}
