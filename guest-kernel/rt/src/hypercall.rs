//! The hypercalls: every exit that a guest makes on purpose is in this file.

#![expect(unsafe_code, reason = "a hypercall is a machine instruction")]

use core::arch::asm;
use core::time::Duration;

use wharf_abi::hypercall::{FOREVER, kick_target};
use wharf_abi::{Hypercall, Interest, Status};

use crate::time::as_nanos;

/// Ends the guest with an exit status.
pub fn exit(status: u8) -> ! {
    // SAFETY: the call reads no memory of the guest's and does not return, as
    // the contract says; the `ud2` behind it keeps that true of any host.
    unsafe {
        asm!(
            "out {port}, al",
            "ud2",
            port = const port(Hypercall::Exit),
            in("rdi") u64::from(status),
            options(noreturn, nostack),
        )
    }
}

/// Parks the guest until the monotonic clock reads `deadline` or an event of
/// `interest` is there, and returns what is ready.
///
/// Returns at once, after one exit, when either is already so. Without a
/// deadline only an event ends the wait, so waiting for neither is for ever.
/// May return early with an empty set.
pub fn wait(deadline: Option<Duration>, interest: Interest) -> Interest {
    wait_until_ns(deadline.map_or(FOREVER, as_nanos), interest)
}

/// As [`wait`], with the deadline in nanoseconds of monotonic time or [`FOREVER`].
pub(crate) fn wait_until_ns(deadline_ns: u64, interest: Interest) -> Interest {
    // SAFETY: the call's arguments are numbers. The host moves bytes between devices
    // and buffers that are in their rings, for which the drivers answer.
    let answer = unsafe { call::<{ port(Hypercall::Wait) }>(deadline_ns, interest.bits()) };
    Interest::from_bits_truncate(answer.value)
}

/// Writes to the console and returns how many bytes the host took, which may be
/// fewer than all; 0 when it took none.
pub(crate) fn console_write(bytes: &[u8]) -> usize {
    // `usize` has 64 bits on the only machine that guests run on.
    let (addr, len) = (bytes.as_ptr().addr() as u64, bytes.len() as u64);
    // SAFETY: address and length are those of a live slice, which the host only
    // reads, and only during the call.
    let answer = unsafe { call::<{ port(Hypercall::ConsoleWrite) }>(addr, len) };
    match Status::from_raw(answer.status) {
        Some(Status::Ok) => bytes.len().min(answer.value as usize),
        Some(Status::Invalid) | None => 0,
    }
}

/// Has the host look at a queue now.
pub(crate) fn kick(device: u16, queue: u16) {
    // SAFETY: the call's argument is a number. The host moves bytes between a
    // device and buffers that are in its rings, for which the driver answers.
    unsafe { call::<{ port(Hypercall::Kick) }>(kick_target(device, queue), 0) };
}

/// Hands a block over; returns when that came to nothing.
pub(crate) fn hand_over(block: &[u8]) {
    let (addr, len) = (block.as_ptr().addr() as u64, block.len() as u64);
    // SAFETY: address and length are those of a live slice, which the host only
    // reads, and only during the call.
    unsafe { call::<{ port(Hypercall::HandOver) }>(addr, len) };
}

/// Tells the host that the guest serves.
pub(crate) fn ready() {
    // SAFETY: the call has no arguments and the host touches no memory for it.
    unsafe { call::<{ port(Hypercall::Ready) }>(0, 0) };
}

/// What the host puts into RAX and RDX.
struct Answer {
    status: u64,
    value: u64,
}

/// Makes the call whose port is `PORT`.
///
/// # Safety
///
/// The arguments must be good for that call: a range that it has the host read
/// must belong to live memory.
unsafe fn call<const PORT: u8>(first: u64, second: u64) -> Answer {
    let (status, value);
    // SAFETY: by contract the host writes RAX and RDX and leaves every other
    // register, the flags and the stack as they were; it reads memory only as
    // the arguments say, for which the caller answers.
    unsafe {
        asm!(
            "out {port}, al",
            port = const PORT,
            in("rdi") first,
            in("rsi") second,
            lateout("rax") status,
            lateout("rdx") value,
            options(nostack, preserves_flags),
        );
    }
    Answer { status, value }
}

/// A call's port as the immediate byte of `out`.
const fn port(call: Hypercall) -> u8 {
    assert!(call.port() <= 0xff, "a port must fit an immediate byte");
    call.port() as u8
}
