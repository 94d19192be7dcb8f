//! Disks: bytes that outlive the guest.
//!
//! ```ignore
//! #[wharf::main(block = ["data"])]
//! async fn main() -> Result<(), wharf::block::Error> {
//!     let disk = wharf::block::open("data")?;
//!     disk.write(0, &[7; 512]).await?;
//!     disk.flush().await
//! }
//! ```
//!
//! Any number of tasks may use one disk at a time: each call puts its request into
//! the device's queue and waits for its own answer, and the host does all that is
//! there in one exit. Requests that are in flight together may be done in any
//! order; one that has been answered is done before any that comes later.
//!
//! Offsets and lengths are in bytes and multiples of [`SECTOR`]. A write lasts, as
//! far as the operator's disk does, once a [`flush`](BlockDevice::flush) that began
//! after its answer has succeeded.

#![expect(unsafe_code, reason = "the device reads and writes buffers by address")]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};

use critical_section::Mutex;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use wharf_abi::DeviceKind;
use wharf_abi::device::{FEATURE_EVENT_IDX, FEATURE_VERSION_1};
use zerocopy::{Immutable, IntoBytes};

use crate::device::{self, Driver, OpenError, Taken};
use crate::transport::OwnMemory;

/// Bytes of a sector, the unit of a disk.
pub const SECTOR: u64 = 512;

/// Most bytes of one request. [`BlockDevice::read`] and [`BlockDevice::write`] make
/// several of more.
pub const REQUEST_MAX: usize = 1 << 20;

/// Entries of the queue: enough for 42 requests at a time, and its rings are two
/// pages.
const QUEUE_SIZE: usize = 128;

const FEATURE_RO: u64 = 1 << 5;
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_DISCARD: u64 = 1 << 13;
const SUPPORTED: u64 =
    FEATURE_VERSION_1 | FEATURE_EVENT_IDX | FEATURE_RO | FEATURE_FLUSH | FEATURE_DISCARD;

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The disk could not: it is full, or broken, or was taken away. The host's
    /// operator can find out more.
    Io,
    /// The disk does not do that.
    Unsupported,
    /// The disk is only there to be read.
    ReadOnly,
    /// Part of it is beyond the disk's end.
    OutOfRange,
    /// An offset or a length that is no multiple of [`SECTOR`], or more than
    /// [`REQUEST_MAX`] where that is the most.
    Uneven,
    /// The disk cannot be had.
    Open(OpenError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io => f.write_str("input/output error"),
            Self::Unsupported => f.write_str("the disk does not do that"),
            Self::ReadOnly => f.write_str("the disk is read-only"),
            Self::OutOfRange => f.write_str("beyond the end of the disk"),
            Self::Uneven => f.write_str("no whole number of sectors"),
            Self::Open(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Error {}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

/// A disk. Copies are the same disk.
#[derive(Clone, Copy)]
pub struct BlockDevice(&'static Device);

/// Opens the block device that the manifest declares by this name.
///
/// It stays open: its rings are the host's to look at for as long as the guest
/// lives, so they are never freed.
///
/// # Errors
///
/// When there is none, or it is open already.
pub fn open(name: &str) -> Result<BlockDevice, OpenError> {
    let Taken {
        place,
        mut transport,
        features,
    } = device::take(DeviceKind::Block, name, SUPPORTED)?;
    let sectors: u64 = transport
        .read_config_space(0)
        .map_err(|_| OpenError::Refused)?;
    let queue = VirtQueue::new(&mut transport, 0, false, true).map_err(|_| OpenError::Refused)?;
    transport.finish_init();
    let device: &'static Device = Box::leak(Box::new(Device {
        features,
        len: sectors.saturating_mul(SECTOR),
        state: Mutex::new(RefCell::new(State {
            queue,
            flights: Vec::new(),
            of_token: [0; QUEUE_SIZE],
            no_room: Vec::new(),
        })),
    }));
    device::register(place, device);
    Ok(BlockDevice(device))
}

impl BlockDevice {
    /// Returns the disk's bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Says whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Says whether writes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.0.features & FEATURE_RO != 0
    }

    /// Fills `bytes` from offset `at` on.
    ///
    /// # Errors
    ///
    /// As [`Error`] says.
    pub async fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(at, bytes.len() as u64)?;
        let mut at = at;
        for part in bytes.chunks_mut(REQUEST_MAX) {
            let (done, read) = self.read_into(at, alloc::vec![0; part.len()]).await;
            done?;
            part.copy_from_slice(&read);
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes `bytes` at offset `at`.
    ///
    /// # Errors
    ///
    /// As [`Error`] says; some of it may then be written, and some not.
    pub async fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check(at, bytes.len() as u64)?;
        let mut at = at;
        for part in bytes.chunks(REQUEST_MAX) {
            self.write_from(at, part.to_vec()).await.0?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// As [`read`](Self::read), without a copy: fills a buffer of at most
    /// [`REQUEST_MAX`] bytes that the device has meanwhile, and returns it.
    pub async fn read_into(&self, at: u64, buffer: Vec<u8>) -> (Result<(), Error>, Vec<u8>) {
        match self.check_one(at, &buffer) {
            Ok(()) => self.0.request(Kind::Read, at / SECTOR, buffer).await,
            Err(error) => (Err(error), buffer),
        }
    }

    /// As [`write`](Self::write), without a copy: writes a buffer of at most
    /// [`REQUEST_MAX`] bytes that the device has meanwhile, and returns it.
    pub async fn write_from(&self, at: u64, buffer: Vec<u8>) -> (Result<(), Error>, Vec<u8>) {
        let checked = if self.is_read_only() {
            Err(Error::ReadOnly)
        } else {
            self.check_one(at, &buffer)
        };
        match checked {
            Ok(()) => self.0.request(Kind::Write, at / SECTOR, buffer).await,
            Err(error) => (Err(error), buffer),
        }
    }

    /// Makes everything last whose write was answered before.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: what was written since the last flush may be lost.
    pub async fn flush(&self) -> Result<(), Error> {
        if self.0.features & FEATURE_FLUSH == 0 {
            // Then every write lasts by itself.
            return Ok(());
        }
        self.0.request(Kind::Flush, 0, Vec::new()).await.0
    }

    /// Tells the disk that `len` bytes from `at` on are of no use any more. What
    /// they then read as is not defined.
    ///
    /// # Errors
    ///
    /// As [`Error`] says; a disk that has no use for that says
    /// [`Error::Unsupported`].
    pub async fn discard(&self, at: u64, len: u64) -> Result<(), Error> {
        self.check(at, len)?;
        if self.0.features & FEATURE_DISCARD == 0 {
            return Err(Error::Unsupported);
        }
        let sectors = u32::try_from(len / SECTOR).map_err(|_| Error::OutOfRange)?;
        let mut segment = Vec::with_capacity(16);
        segment.extend((at / SECTOR).to_le_bytes());
        segment.extend(sectors.to_le_bytes());
        segment.extend([0; 4]);
        self.0.request(Kind::Discard, 0, segment).await.0
    }

    fn check(&self, at: u64, len: u64) -> Result<(), Error> {
        if !at.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
            return Err(Error::Uneven);
        }
        match at.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(Error::OutOfRange),
        }
    }

    fn check_one(&self, at: u64, buffer: &[u8]) -> Result<(), Error> {
        if buffer.is_empty() || buffer.len() > REQUEST_MAX {
            return Err(Error::Uneven);
        }
        self.check(at, buffer.len() as u64)
    }
}

impl fmt::Debug for BlockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = self.len();
        f.debug_struct("BlockDevice").field("len", &len).finish()
    }
}

/// A device and its queue.
struct Device {
    features: u64,
    len: u64,
    state: Mutex<RefCell<State>>,
}

struct State {
    queue: VirtQueue<OwnMemory, QUEUE_SIZE>,
    /// Requests that the device has, or whose answer nobody has taken yet.
    flights: Vec<Option<Flight>>,
    /// Which flight a token of the queue's belongs to.
    of_token: [usize; QUEUE_SIZE],
    /// Who waits for room in the queue.
    no_room: Vec<Waker>,
}

/// One request, with all that the device reads and writes of it.
struct Flight {
    kind: Kind,
    ends: Box<Ends>,
    data: Vec<u8>,
    answer: Option<Result<(), Error>>,
    waker: Option<Waker>,
    /// Nobody waits any more; the answer goes nowhere.
    abandoned: bool,
}

/// What stands before and behind the data (virtio 1.2 §5.2.6).
struct Ends {
    header: Header,
    status: u8,
}

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read = 0,
    Write = 1,
    Flush = 4,
    Discard = 11,
}

impl Device {
    /// Makes a request and waits for its answer; gives back the data.
    async fn request(&'static self, kind: Kind, sector: u64, data: Vec<u8>) -> Answer {
        let header = Header {
            kind: kind as u32,
            reserved: 0,
            sector,
        };
        let mut flight = Some(Flight {
            kind,
            ends: Box::new(Ends {
                header,
                status: 0xFF,
            }),
            data,
            answer: None,
            waker: None,
            abandoned: false,
        });
        let at = poll_fn(|context| self.with(|state| state.submit(&mut flight, context))).await;
        let ticket = Ticket { device: self, at };
        poll_fn(|context| ticket.device.with(|state| state.poll(ticket.at, context))).await
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut State) -> T) -> T {
        critical_section::with(|cs| use_it(&mut self.state.borrow_ref_mut(cs)))
    }
}

impl Driver for Device {
    fn ready(&self) {
        self.with(State::take_answers);
    }
}

/// How a request ended, and its data.
type Answer = (Result<(), Error>, Vec<u8>);

/// A request in flight that somebody waits for. Whoever stops waiting leaves it to
/// the device, and its buffers with it.
struct Ticket {
    device: &'static Device,
    at: usize,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.device.with(|state| state.abandon(self.at));
    }
}

impl State {
    /// Puts a flight into the queue when there is room, and says where it is kept.
    fn submit(&mut self, flight: &mut Option<Flight>, context: &Context<'_>) -> Poll<usize> {
        let Some(mut new) = flight.take() else {
            // It was submitted before, and polled again all the same.
            return Poll::Pending;
        };
        // SAFETY: the buffers are the flight's own, which stays in the list until
        // the token is popped; moving it moves none of them.
        let added = new.with_buffers(|inputs, outputs| unsafe { self.queue.add(inputs, outputs) });
        let Ok(token) = added else {
            *flight = Some(new);
            self.no_room.push(context.waker().clone());
            return Poll::Pending;
        };
        let free = self.flights.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        if let Some(slot) = self.flights.get_mut(at) {
            *slot = Some(new);
        }
        if let Some(of) = self.of_token.get_mut(usize::from(token)) {
            *of = at;
        }
        device::submitted();
        Poll::Ready(at)
    }

    /// Takes a flight's answer, or leaves word to be woken for it.
    fn poll(&mut self, at: usize, context: &Context<'_>) -> Poll<Answer> {
        let Some(slot) = self.flights.get_mut(at) else {
            return Poll::Pending;
        };
        match slot.take() {
            Some(Flight {
                answer: Some(answer),
                data,
                ..
            }) => Poll::Ready((answer, data)),
            Some(mut flight) => {
                flight.waker = Some(context.waker().clone());
                *slot = Some(flight);
                Poll::Pending
            }
            None => Poll::Pending,
        }
    }

    fn abandon(&mut self, at: usize) {
        if let Some(slot) = self.flights.get_mut(at) {
            match slot {
                Some(flight) if flight.answer.is_none() => flight.abandoned = true,
                // Either its answer was taken, or nobody will.
                _ => *slot = None,
            }
        }
    }

    /// Takes every answer out of the queue.
    fn take_answers(&mut self) {
        while let Some(token) = self.queue.peek_used() {
            let at = self.of_token.get(usize::from(token)).copied();
            let slot = at.and_then(|at| self.flights.get_mut(at));
            let Some(slot) = slot else { return };
            let Some(flight) = slot else { return };
            // SAFETY: these are the buffers that were added for this token.
            let popped = flight.with_buffers(|inputs, outputs| unsafe {
                self.queue.pop_used(token, inputs, outputs)
            });
            if popped.is_err() {
                return;
            }
            flight.answer = Some(match flight.ends.status {
                0 => Ok(()),
                2 => Err(Error::Unsupported),
                _ => Err(Error::Io),
            });
            let waker = flight.waker.take();
            if flight.abandoned {
                *slot = None;
            }
            if let Some(waker) = waker {
                waker.wake();
            }
        }
        for waker in self.no_room.drain(..) {
            waker.wake();
        }
    }
}

impl Flight {
    /// Gives the buffers as the queue takes them: what the device reads, then what
    /// it writes.
    fn with_buffers<T>(
        &mut self,
        use_them: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> T,
    ) -> T {
        let Ends { header, status } = &mut *self.ends;
        let (header, status) = (header.as_bytes(), core::slice::from_mut(status));
        match self.kind {
            Kind::Read => use_them(&[header], &mut [&mut self.data, status]),
            Kind::Write | Kind::Discard => use_them(&[header, &self.data], &mut [status]),
            Kind::Flush => use_them(&[header], &mut [status]),
        }
    }
}
