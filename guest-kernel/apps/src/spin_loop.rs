//! A fixed amount of arithmetic, for comparing a processor with itself.

/// Turns a number over `count` times: a multiplication, an addition and two
/// shifts each, every one of which needs the one before it.
#[inline(never)]
pub fn spin(count: u64) -> u64 {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for step in 0..count {
        state = state.wrapping_mul(0xD134_2543_DE82_EF95).wrapping_add(step);
        state ^= state >> 29;
    }
    state
}
