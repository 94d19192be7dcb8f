//! One request as the guest put it into a ring, fetched once.

use virtio_queue::DescriptorChain;
use vm_memory::Permissions;

use super::Broken;
use super::user::UserMemory;
use crate::transfer::Buffers;

/// Most descriptors of a request. More than the queues offered can hold; only an
/// indirect table could have more.
const DESCRIPTORS_MAX: usize = 256;

/// What one chain of descriptors says.
#[derive(Debug)]
pub(super) struct Chain {
    /// Which it is, for the used ring.
    pub(super) head: u16,
    readable: Vec<Span>,
    writable: Vec<Span>,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    addr: u64,
    len: u32,
}

impl Chain {
    /// Reads each descriptor once. From then on the ring may change as it likes.
    ///
    /// # Errors
    ///
    /// When the chain loops, leaves the table, or has a buffer to read behind one
    /// to write (virtio 1.2 §2.7.4.2).
    pub(super) fn fetch(chain: DescriptorChain<&UserMemory<'_>>) -> Result<Self, Broken> {
        let mut fetched = Self {
            head: chain.head_index(),
            readable: Vec::new(),
            writable: Vec::new(),
        };
        for descriptor in chain.take(DESCRIPTORS_MAX) {
            let span = Span {
                addr: descriptor.addr().0,
                len: descriptor.len(),
            };
            if descriptor.is_write_only() {
                fetched.writable.push(span);
            } else if fetched.writable.is_empty() {
                fetched.readable.push(span);
            } else {
                return Err(Broken::Order);
            }
            if !descriptor.has_next() {
                return Ok(fetched);
            }
        }
        // virtio-queue ends a chain that goes on where it must not.
        Err(Broken::Chain)
    }

    /// Bytes that the guest has for the device to read.
    pub(super) fn readable_len(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes that the device may write.
    pub(super) fn writable_len(&self) -> u64 {
        total(&self.writable)
    }

    /// `len` readable bytes from `from` on.
    ///
    /// # Errors
    ///
    /// When the guest may not read them all. What lies beyond the chain's end is
    /// simply not there.
    pub(super) fn readable<'m>(
        &self,
        memory: UserMemory<'m>,
        from: u64,
        len: u64,
    ) -> Result<Buffers<'m>, Broken> {
        collect(&self.readable, memory, from, len, Permissions::Read)
    }

    /// The same of writable bytes.
    ///
    /// # Errors
    ///
    /// When the guest may not write them all.
    pub(super) fn writable<'m>(
        &self,
        memory: UserMemory<'m>,
        from: u64,
        len: u64,
    ) -> Result<Buffers<'m>, Broken> {
        collect(&self.writable, memory, from, len, Permissions::Write)
    }
}

fn total(spans: &[Span]) -> u64 {
    // Below 2³² by virtio-queue's own check.
    spans.iter().map(|span| u64::from(span.len)).sum()
}

fn collect<'m>(
    spans: &[Span],
    memory: UserMemory<'m>,
    from: u64,
    len: u64,
    access: Permissions,
) -> Result<Buffers<'m>, Broken> {
    let mut buffers = Buffers::default();
    let (mut skip, mut left) = (from, len);
    for span in spans {
        let room = u64::from(span.len).saturating_sub(skip);
        let take = room.min(left);
        let (addr, bytes) = (span.addr.checked_add(skip), usize::try_from(take));
        skip = skip.saturating_sub(u64::from(span.len));
        left = left.saturating_sub(take);
        if take == 0 {
            continue;
        }
        let broken = Broken::Buffer {
            addr: span.addr,
            len: span.len,
        };
        let (Some(addr), Ok(bytes)) = (addr, bytes) else {
            return Err(broken);
        };
        for piece in memory.pieces(addr, bytes, access) {
            buffers.push(piece.map_err(|_| broken)?);
        }
    }
    Ok(buffers)
}
