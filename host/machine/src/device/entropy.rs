//! Random bytes (virtio 1.2 §5.4).

use virtio_queue::Queue;

use super::ring::{self, Budget};
use super::user::UserMemory;
use super::{Broken, Terms};

/// Most bytes of one request.
const REQUEST_MAX: u64 = 64 << 10;

const QUEUE_SIZE: u16 = 64;

pub(super) fn terms() -> Terms {
    Terms {
        device_type: 4,
        features: 0,
        queue_count: 1,
        queue_size_max: QUEUE_SIZE,
        config: Vec::new(),
    }
}

/// Fills the buffers that are there, as far as the budget goes; says whether there
/// are more.
///
/// # Errors
///
/// The guest's fault.
pub(super) fn serve(
    queue: &mut Queue,
    user: UserMemory<'_>,
    budget: &mut Budget,
) -> Result<bool, Broken> {
    ring::drain(queue, user, budget, |chain| {
        let len = chain.writable_len().min(REQUEST_MAX);
        let into = chain.writable(user, 0, len)?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        // A kernel without random bytes gives none; the guest sees that.
        let written = match getrandom::fill(&mut bytes) {
            Ok(()) => into.copy_in(&bytes),
            Err(_) => 0,
        };
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        // They cost more than a copy.
        Ok((written, len.saturating_mul(4)))
    })
}
