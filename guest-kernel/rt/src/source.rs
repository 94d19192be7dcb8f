//! The driver of a device that only gives bytes: one queue, to which the guest gives
//! a buffer when somebody wants some.

#![expect(unsafe_code, reason = "the device writes a buffer by address")]

use alloc::boxed::Box;
use alloc::vec;
use core::cell::RefCell;
use core::future::poll_fn;
use core::ops::Range;
use core::task::{Context, Poll, Waker};

use critical_section::Mutex;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use wharf_abi::DeviceKind;
use wharf_abi::device::{FEATURE_EVENT_IDX, FEATURE_VERSION_1};

use crate::device::{self, Driver, OpenError, Taken};
use crate::transport::OwnMemory;

/// Bytes that are asked for at a time.
const BUFFER: usize = 4096;

const QUEUE_SIZE: usize = 4;

/// A device that gives bytes.
pub(crate) struct Source(Mutex<RefCell<State>>);

struct State {
    queue: VirtQueue<OwnMemory, QUEUE_SIZE>,
    buffer: Box<[u8]>,
    /// The buffer is with the device, under this token.
    token: Option<u16>,
    /// What it gave and nobody has read.
    left: Range<usize>,
    /// It has given nothing, for which it was asked.
    is_dry: bool,
    waker: Option<Waker>,
}

impl Source {
    /// Opens the device of a kind that the manifest declares by this name. It stays
    /// open: its ring is the host's to look at for as long as the guest lives.
    pub(crate) fn open(kind: DeviceKind, name: &str) -> Result<&'static Self, OpenError> {
        let Taken {
            place,
            mut transport,
            ..
        } = device::take(kind, name, FEATURE_VERSION_1 | FEATURE_EVENT_IDX)?;
        let queue =
            VirtQueue::new(&mut transport, 0, false, true).map_err(|_| OpenError::Refused)?;
        transport.finish_init();
        let source: &'static Self = Box::leak(Box::new(Self(Mutex::new(RefCell::new(State {
            queue,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            token: None,
            left: 0..0,
            is_dry: false,
            waker: None,
        })))));
        device::register(place, source);
        Ok(source)
    }

    /// Reads some bytes, at least one; 0 when the device gives none.
    pub(crate) async fn read(&'static self, into: &mut [u8]) -> usize {
        if into.is_empty() {
            return 0;
        }
        poll_fn(|context| self.with(|state| state.read(into, context))).await
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut State) -> T) -> T {
        critical_section::with(|cs| use_it(&mut self.0.borrow_ref_mut(cs)))
    }
}

impl Driver for Source {
    fn ready(&self) {
        self.with(State::take);
    }
}

impl State {
    fn read(&mut self, into: &mut [u8], context: &Context<'_>) -> Poll<usize> {
        if let Some(bytes) = self.buffer.get(self.left.clone())
            && !bytes.is_empty()
        {
            let count = bytes.len().min(into.len());
            for (to, from) in into.iter_mut().zip(bytes) {
                *to = *from;
            }
            self.left.start += count;
            return Poll::Ready(count);
        }
        if core::mem::take(&mut self.is_dry) {
            return Poll::Ready(0);
        }
        if self.token.is_none() {
            // SAFETY: the buffer is the device's until its token is popped: nothing
            // here looks at it while there is one, and it is never freed.
            let added = unsafe { self.queue.add(&[], &mut [&mut self.buffer]) };
            self.token = added.ok();
            device::submitted();
        }
        // One reads at a time: who asks later takes the place.
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn take(&mut self) {
        let Some(token) = self.token.filter(|_| self.queue.can_pop()) else {
            return;
        };
        // SAFETY: this is the buffer that was added for this token.
        let popped = unsafe { self.queue.pop_used(token, &[], &mut [&mut self.buffer]) };
        let len = popped.map_or(0, |len| len as usize).min(BUFFER);
        self.token = None;
        self.left = 0..len;
        self.is_dry = len == 0;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
