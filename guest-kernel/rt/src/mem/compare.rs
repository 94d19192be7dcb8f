//! Comparisons of memory.

#![expect(unsafe_code, reason = "implements C's memory functions")]

use core::ffi::c_int;
use core::iter::zip;
use core::slice;

/// Compares two ranges: the sign of the first difference, 0 when there is none.
///
/// # Safety
///
/// As C's: both ranges valid for `len` bytes.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(super) unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> c_int {
    if len == 0 {
        return 0;
    }
    // SAFETY: the caller vouches for `len` bytes, so the pointer is not null.
    let left = unsafe { slice::from_raw_parts(left, len) };
    // SAFETY: as above.
    let right = unsafe { slice::from_raw_parts(right, len) };
    compare(left, right)
}

/// Compares two ranges: 0 when they are equal.
///
/// # Safety
///
/// As C's: both ranges valid for `len` bytes.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(super) unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> c_int {
    // SAFETY: the caller's promise is the same.
    unsafe { memcmp(left, right, len) }
}

/// Compares slices of one length, eight bytes at a time.
///
/// Words and bytes are compared as numbers: comparing arrays or slices would
/// call `memcmp`.
fn compare(left: &[u8], right: &[u8]) -> c_int {
    let (left_words, left_bytes) = left.as_chunks();
    let (right_words, right_bytes) = right.as_chunks();
    for (left, right) in zip(left_words, right_words) {
        // Big-endian: the first byte in memory decides.
        let (left, right) = (u64::from_be_bytes(*left), u64::from_be_bytes(*right));
        if left != right {
            return if left < right { -1 } else { 1 };
        }
    }
    for (&left, &right) in zip(left_bytes, right_bytes) {
        if left != right {
            return c_int::from(left) - c_int::from(right);
        }
    }
    0
}
