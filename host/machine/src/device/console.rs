//! What the operator types, for a guest that reads it (virtio 1.2 §5.3, the receiving
//! half).

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use virtio_queue::Queue;

use super::ring::{Budget, Receiving, give_back};
use super::user::UserMemory;
use super::{Broken, Terms};
use crate::memory::u64_of;
use crate::transfer::Buffers;

const QUEUE_SIZE: u16 = 64;

/// Where input comes from.
pub trait Input: fmt::Debug + Send {
    /// Becomes readable when there is some, or there will be none any more.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Fills as much as there is, without waiting; 0 when nothing more will come.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] when there is nothing yet; any other is the end.
    fn read(&mut self, into: &Buffers<'_>) -> io::Result<usize>;
}

/// A guest's input.
#[derive(Debug)]
pub struct Console {
    /// None when there is no more.
    input: Option<Box<dyn Input>>,
    buffers: Receiving,
    has_told_end: bool,
}

pub(super) fn terms() -> Terms {
    Terms {
        device_type: 3,
        features: 0,
        queue_count: 1,
        queue_size_max: QUEUE_SIZE,
        config: vec![0; 12],
    }
}

impl Console {
    /// A console with this input, or none.
    #[must_use]
    pub fn new(input: Option<Box<dyn Input>>) -> Self {
        Self {
            input,
            buffers: Receiving::new(1),
            has_told_end: false,
        }
    }

    /// What becomes readable when there is something for the guest, while it waits
    /// for that.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        let input = self.input.as_ref().filter(|_| self.buffers.is_waiting());
        input.map(|input| input.fd())
    }

    /// Whether it has taken a buffer out that it has not used.
    pub(super) const fn has_spare(&self) -> bool {
        self.buffers.is_waiting()
    }

    /// Whether the guest knows that there is no more.
    pub(super) const fn has_told_end(&self) -> bool {
        self.has_told_end
    }

    /// Has it go on for a guest that knows that there is no more.
    pub(super) fn set_told_end(&mut self) {
        self.input = None;
        self.has_told_end = true;
    }

    /// Gives the guest what there is, as long as it has buffers; says whether there
    /// may be more.
    ///
    /// # Errors
    ///
    /// The guest's fault.
    pub(super) fn serve(
        &mut self,
        queue: &mut Queue,
        user: UserMemory<'_>,
        budget: &mut Budget,
    ) -> Result<bool, Broken> {
        while !self.has_told_end {
            if budget.is_spent() {
                return Ok(true);
            }
            let Some(chain) = self.buffers.buffer(queue, user)? else {
                return Ok(false);
            };
            let into = chain.writable(user, 0, chain.writable_len())?;
            let read = match &mut self.input {
                None => 0,
                Some(input) => match input.read(&into) {
                    Ok(count) => count,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        self.buffers.keep(chain);
                        return Ok(false);
                    }
                    Err(e) => {
                        log::warn!("a guest's input ends: {e}");
                        0
                    }
                },
            };
            if read == 0 {
                self.input = None;
                self.has_told_end = true;
            }
            let written = u32::try_from(read).unwrap_or(u32::MAX);
            give_back(queue, user, &chain, written)?;
            budget.spend(u64_of(read));
        }
        Ok(false)
    }
}
