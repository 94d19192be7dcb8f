//! Every function against what slices do, on all small cases and random large ones.

use proptest::prelude::*;

use super::compare::{bcmp, memcmp};
use super::{memcpy, memmove, memset, strlen};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + 7) as u8).collect()
}

/// Moves within one buffer, and compares with `copy_within`.
fn check_move(size: usize, from: usize, to: usize, len: usize) {
    let mut expected = pattern(size);
    expected.copy_within(from..from + len, to);
    let mut buffer = pattern(size);
    assert!(from + len <= size && to + len <= size);
    let base = buffer.as_mut_ptr();
    // SAFETY: both ranges lie within the buffer.
    let returned = unsafe { memmove(base.wrapping_add(to), base.wrapping_add(from), len) };
    assert_eq!(returned, base.wrapping_add(to));
    assert_eq!(buffer, expected, "{len} bytes from {from} to {to}");
}

#[test]
fn memmove_does_what_copy_within_does_for_every_overlap() {
    for len in 0..=100 {
        for to in 0..=110 {
            check_move(220, 55, to, len);
        }
    }
}

#[test]
fn memcpy_and_memset_write_the_range_and_nothing_else() {
    for len in 0..=70 {
        for at in 0..=9 {
            let source = pattern(len);
            let mut expected = vec![0xEE; 90];
            let mut buffer = expected.clone();
            expected[at..at + len].copy_from_slice(&source);
            // SAFETY: `at + len` is below 90, and the buffers are two.
            unsafe { memcpy(buffer.as_mut_ptr().wrapping_add(at), source.as_ptr(), len) };
            assert_eq!(buffer, expected);

            expected[at..at + len].fill(0x5A);
            // SAFETY: as above. Bits above the low byte must not count.
            unsafe { memset(buffer.as_mut_ptr().wrapping_add(at), 0x1_5A, len) };
            assert_eq!(buffer, expected);
        }
    }
}

fn check_compare(left: &[u8], right: &[u8]) {
    let len = left.len().min(right.len());
    // SAFETY: both slices have `len` bytes.
    let order = unsafe { memcmp(left.as_ptr(), right.as_ptr(), len) };
    assert_eq!(order.cmp(&0), left[..len].cmp(&right[..len]));
    // SAFETY: as above.
    let different = unsafe { bcmp(left.as_ptr(), right.as_ptr(), len) };
    assert_eq!(different != 0, left[..len] != right[..len]);
}

#[test]
fn memcmp_finds_a_difference_wherever_it_is() {
    for len in 0..=40 {
        let left = pattern(len);
        check_compare(&left, &left.clone());
        for at in 0..len {
            for change in [1, 0x7F, 0x80, 0xFF] {
                let mut right = left.clone();
                right[at] ^= change;
                // What follows the first difference must not count.
                right[at + 1..].fill(0);
                check_compare(&left, &right);
            }
        }
    }
}

#[test]
fn strlen_stops_at_the_first_nul() {
    for len in 0..50 {
        let mut text = [b'x'; 60];
        text[len] = 0;
        // SAFETY: a NUL is within the buffer.
        assert_eq!(unsafe { strlen(text.as_ptr().cast()) }, len);
    }
}

proptest! {
    #[test]
    fn memmove_moves_large_ranges(from in 0_usize..3000, to in 0_usize..3000, len in 0_usize..3000) {
        check_move(6000, from, to, len);
    }

    #[test]
    fn memcmp_orders_random_ranges(left: Vec<u8>, right: Vec<u8>) {
        check_compare(&left, &right);
    }
}
