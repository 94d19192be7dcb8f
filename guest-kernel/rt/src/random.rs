//! Random numbers fit for keys: ChaCha20, seeded by the host.
//!
//! No draw costs an exit. A guest that has become another (a clone, an upgrade)
//! has another seed, and starts over from it. A number that was drawn before and not
//! used yet is the same in all of them.

use core::cell::RefCell;
use core::convert::Infallible;

use critical_section::Mutex;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng, TryCryptoRng, TryRng};

use crate::boot;

/// Fills a buffer with random bytes.
pub fn fill(bytes: &mut [u8]) {
    draw(|generator| generator.fill_bytes(bytes));
}

/// Returns the guest's generator, for what takes one by the traits of `rand_core`.
#[must_use]
pub fn rng() -> Rng {
    Rng(())
}

/// The guest's generator; see [`rng`]. All values of this type draw from one
/// stream of numbers.
#[derive(Debug)]
pub struct Rng(());

impl TryRng for Rng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(draw(ChaCha20Rng::next_u32))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(draw(ChaCha20Rng::next_u64))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        fill(bytes);
        Ok(())
    }
}

impl TryCryptoRng for Rng {}

/// Made at the first draw.
static GENERATOR: Mutex<RefCell<Option<Seeded>>> = Mutex::new(RefCell::new(None));

/// Draws again when the guest has become another meanwhile: what was drawn is what the
/// guest that it was, and all of its clones, have as well.
fn draw<T>(mut from: impl FnMut(&mut ChaCha20Rng) -> T) -> T {
    loop {
        let seed = boot::seed();
        let drawn = critical_section::with(|cs| {
            let mut slot = GENERATOR.borrow_ref_mut(cs);
            from(&mut Seeded::current(&mut slot, &seed).numbers)
        });
        if boot::seed() == seed {
            return drawn;
        }
    }
}

/// A generator and its seed.
struct Seeded {
    seed: [u8; 32],
    numbers: ChaCha20Rng,
}

impl Seeded {
    /// The generator of this seed: the one there is, or a new one in a guest that goes on
    /// as a clone. Clones may have the same generation, and never the same seed.
    fn current<'a>(slot: &'a mut Option<Self>, seed: &[u8; 32]) -> &'a mut Self {
        slot.take_if(|seeded| seeded.seed != *seed);
        slot.get_or_insert_with(|| Self {
            seed: *seed,
            numbers: ChaCha20Rng::from_seed(*seed),
        })
    }
}

#[cfg(test)]
mod tests {
    use rand_core::Rng as _;

    use super::Seeded;

    #[test]
    fn a_guest_goes_on_with_its_numbers_and_a_clone_has_its_own() {
        let mut slot = None;
        let mut draw = |seed| Seeded::current(&mut slot, &[seed; 32]).numbers.next_u64();
        let first = draw(7);
        assert_ne!(draw(7), first);
        assert_ne!(draw(8), first);
        assert_eq!(draw(7), first);
    }
}
