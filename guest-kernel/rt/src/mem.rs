//! The C memory functions that compiled Rust calls.
//!
//! A guest links no C library. The loops are in assembly, because the compiler
//! recognises such loops in Rust and turns them into calls of the very function
//! that they are in.

#![expect(unsafe_code, reason = "implements C's memory functions")]

use core::arch::asm;
use core::ffi::{c_char, c_int};

mod compare;

/// Copies `len` bytes between ranges that do not overlap.
///
/// # Safety
///
/// As C's: both ranges valid for `len` bytes, and apart.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; the ABI keeps the direction
    // flag clear.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// Copies `len` bytes between ranges that may overlap.
///
/// # Safety
///
/// As C's: both ranges valid for `len` bytes.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    let ahead = to.addr().wrapping_sub(from.addr());
    if ahead >= len && ahead.wrapping_neg() >= len {
        // SAFETY: the ranges are at least `len` bytes apart, either way round.
        unsafe { memcpy(to, from, len) }
    } else if ahead >= len {
        // SAFETY: the caller vouches for both ranges.
        unsafe { move_down(to, from, len) };
        to
    } else {
        // SAFETY: the caller vouches for both ranges.
        unsafe { move_up(to, from, len) };
        to
    }
}

/// Copies from the first byte to the last, 32 at a time: right when `to` is
/// below `from`. (`rep movsb` would be right too, but crawls when the two are
/// close.)
///
/// # Safety
///
/// As [`memmove`].
unsafe fn move_down(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the loops read and write `len` bytes from `from` and `to` on, for
    // which the caller vouches; each block is read whole before any of it is
    // written, and what is written lies below everything still to be read.
    unsafe {
        asm!(
            "2:",
            "cmp {left}, 32",
            "jb 3f",
            "movups {low}, [{from}]",
            "movups {high}, [{from} + 16]",
            "movups [{to}], {low}",
            "movups [{to} + 16], {high}",
            "add {from}, 32",
            "add {to}, 32",
            "sub {left}, 32",
            "jmp 2b",
            "3:",
            "test {left}, {left}",
            "jz 4f",
            "mov {byte}, [{from}]",
            "mov [{to}], {byte}",
            "inc {from}",
            "inc {to}",
            "dec {left}",
            "jmp 3b",
            "4:",
            left = inout(reg) len => _,
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            low = out(xmm_reg) _,
            high = out(xmm_reg) _,
            byte = out(reg_byte) _,
            options(nostack),
        );
    }
}

/// Copies from the last byte to the first, 32 at a time: right when `to` is
/// above `from`.
///
/// # Safety
///
/// As [`memmove`].
unsafe fn move_up(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: as in `move_down`, with what is written above everything still to
    // be read.
    unsafe {
        asm!(
            "2:",
            "cmp {left}, 32",
            "jb 3f",
            "movups {low}, [{from} + {left} - 32]",
            "movups {high}, [{from} + {left} - 16]",
            "movups [{to} + {left} - 32], {low}",
            "movups [{to} + {left} - 16], {high}",
            "sub {left}, 32",
            "jmp 2b",
            "3:",
            "test {left}, {left}",
            "jz 4f",
            "mov {byte}, [{from} + {left} - 1]",
            "mov [{to} + {left} - 1], {byte}",
            "dec {left}",
            "jmp 3b",
            "4:",
            left = inout(reg) len => _,
            from = in(reg) from,
            to = in(reg) to,
            low = out(xmm_reg) _,
            high = out(xmm_reg) _,
            byte = out(reg_byte) _,
            options(nostack),
        );
    }
}

/// Sets `len` bytes to the low byte of `value`.
///
/// # Safety
///
/// As C's: the range valid for `len` bytes.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn memset(to: *mut u8, value: c_int, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the range; the ABI keeps the direction
    // flag clear.
    unsafe {
        asm!(
            "rep stosb",
            inout("rcx") len => _,
            inout("rdi") to => _,
            in("eax") value,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// Returns the length of a string without its terminator.
///
/// # Safety
///
/// As C's: a NUL byte ends the range that starts at `text`.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn strlen(text: *const c_char) -> usize {
    let left: usize;
    // SAFETY: the scan stops at the terminator; the ABI keeps the direction flag
    // clear.
    unsafe {
        asm!(
            "repne scasb",
            inout("rcx") usize::MAX => left,
            inout("rdi") text => _,
            in("al") 0_u8,
            options(nostack, readonly),
        );
    }
    // The count went down once for each byte and once for the terminator.
    !left - 1
}

#[cfg(test)]
mod tests;
