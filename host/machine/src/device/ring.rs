//! What all queues have in common: requests taken out and given back, how much of it
//! at a stretch, and buffers that wait for what comes by itself.

use std::sync::atomic::Ordering;

use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::Broken;
use super::chain::Chain;
use super::user::UserMemory;

/// What one look at the rings does at most: requests and bytes, about a millisecond of
/// either where nothing has to be waited for. A worker has other guests to run; what
/// is left over is done at the guest's next turn.
pub(super) const REQUESTS_AT_ONCE: u32 = 256;
pub(super) const BYTES_AT_ONCE: u64 = 8 << 20;

/// What is left of one look.
pub(super) struct Budget {
    requests: u32,
    bytes: u64,
}

impl Budget {
    pub(super) const WHOLE: Self = Self {
        requests: REQUESTS_AT_ONCE,
        bytes: BYTES_AT_ONCE,
    };

    /// Of the last look at a guest that has nothing more to say: whatever a queue holds.
    pub(super) const LAST: Self = Self {
        requests: REQUESTS_AT_ONCE,
        bytes: u64::MAX,
    };

    pub(super) const fn is_spent(&self) -> bool {
        self.requests == 0 || self.bytes == 0
    }

    /// Books a request.
    pub(super) const fn spend(&mut self, bytes: u64) {
        self.requests = self.requests.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Does every request in a queue, as far as the budget goes; says whether there are
/// more. `serve` returns how much of the guest's memory it wrote and how much work it
/// was, both in bytes.
///
/// # Errors
///
/// The guest's fault.
pub(super) fn drain(
    queue: &mut Queue,
    user: UserMemory<'_>,
    budget: &mut Budget,
    mut serve: impl FnMut(&Chain) -> Result<(u32, u64), Broken>,
) -> Result<bool, Broken> {
    loop {
        while !budget.is_spent() {
            let Some(chain) = take(queue, user)? else {
                break;
            };
            let (written, work) = serve(&chain)?;
            give_back(queue, user, &chain, written)?;
            budget.spend(work);
        }
        // The guest is told from which index on it need kick.
        let more = queue.enable_notification(&user).map_err(|e| ring(&e))?;
        if !more || budget.is_spent() {
            return Ok(more);
        }
    }
}

/// A queue's buffers for what comes without having been asked for.
#[derive(Debug)]
pub(super) struct Receiving {
    /// Bytes that each has to have room for.
    least: u64,
    /// One that was taken out and not used.
    spare: Option<Chain>,
}

impl Receiving {
    pub(super) const fn new(least: u64) -> Self {
        Self { least, spare: None }
    }

    /// A buffer, unless the guest has none there.
    ///
    /// # Errors
    ///
    /// The guest's fault.
    pub(super) fn buffer(
        &mut self,
        queue: &mut Queue,
        user: UserMemory<'_>,
    ) -> Result<Option<Chain>, Broken> {
        if let Some(chain) = self.spare.take() {
            return Ok(Some(chain));
        }
        loop {
            if let Some(chain) = take(queue, user)? {
                if chain.writable_len() < self.least {
                    return Err(Broken::SmallBuffer);
                }
                return Ok(Some(chain));
            }
            if !queue.enable_notification(&user).map_err(|e| ring(&e))? {
                return Ok(None);
            }
        }
    }

    /// Keeps a buffer that nothing was written into for the next time.
    pub(super) fn keep(&mut self, chain: Chain) {
        self.spare = Some(chain);
    }

    /// Whether a buffer, the last of its queue that was taken out, waits for something to
    /// come.
    pub(super) const fn is_waiting(&self) -> bool {
        self.spare.is_some()
    }
}

fn take(queue: &mut Queue, user: UserMemory<'_>) -> Result<Option<Chain>, Broken> {
    let chain = queue.iter(&user).map_err(|e| ring(&e))?.next();
    chain.map(Chain::fetch).transpose()
}

/// Gives a request back, with so many bytes written.
///
/// # Errors
///
/// The guest's fault.
pub(super) fn give_back(
    queue: &mut Queue,
    user: UserMemory<'_>,
    chain: &Chain,
    written: u32,
) -> Result<(), Broken> {
    queue
        .add_used(&user, chain.head, written)
        .map_err(|e| ring(&e))
}

/// Whether the used index has passed the guest's `used_event` (virtio 1.2
/// §2.7.7.2), which says how far the guest has looked.
pub(super) fn has_news(queue: &Queue, user: UserMemory<'_>) -> Result<bool, Broken> {
    let event_at = u64::from(queue.size())
        .saturating_mul(2)
        .saturating_add(4)
        .checked_add(queue.avail_ring())
        .ok_or(Broken::AvailIndex)?;
    let event: u16 = user
        .load(GuestAddress(event_at), Ordering::Acquire)
        .map_err(|_| Broken::Ring { addr: event_at })?;
    let ahead = queue
        .next_used()
        .wrapping_sub(u16::from_le(event))
        .wrapping_sub(1);
    Ok(ahead < queue.size())
}

/// Rings were checked at set-up, so that all that can be wrong is what is in them.
fn ring(error: &QueueError) -> Broken {
    match error {
        QueueError::InvalidAvailRingIndex => Broken::AvailIndex,
        _ => Broken::Chain,
    }
}
