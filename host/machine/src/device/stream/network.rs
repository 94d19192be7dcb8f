//! What stands behind a guest's streams.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wharf_abi::stream::Refusal;

use crate::handover::Luggage;
use crate::transfer::Buffers;

/// One connection, of one guest; never given to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId(pub u64);

/// How a connection is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// What was sent is still delivered.
    Orderly,
    /// The other side is told that it was cut off.
    Reset,
}

/// Something that happened on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// Somebody connected to a port of the guest's.
    Incoming {
        /// The connection.
        id: StreamId,
        /// The guest's port.
        port: u16,
    },
    /// What the guest asked for is there.
    Connected(StreamId),
    /// It is not to be had.
    Failed(StreamId, Refusal),
    /// There may be something to receive; when it `ends`, all that is left of it.
    Readable {
        /// The connection.
        id: StreamId,
        /// Whether its last byte has arrived, or it is broken.
        ends: bool,
    },
    /// There may be room to send.
    Writable(StreamId),
}

/// The network, as a guest's streams see it. Nothing in it blocks.
///
/// Readiness is told once (as by `EPOLLET`, epoll(7)): after
/// [`Happening::Readable`] there is nothing more to tell until a [`Network::receive`]
/// has filled less than it could.
pub trait Network: fmt::Debug + Send {
    /// Becomes readable when [`Network::poll`] has something.
    fn fd(&self) -> BorrowedFd<'_>;

    /// The guest has its driver: connections may come.
    fn open(&mut self);

    /// Adds what happened; false when there may be more.
    fn poll(&mut self, happened: &mut Vec<Happening>) -> bool;

    /// Begins to connect; [`Happening::Connected`] or [`Happening::Failed`] follows.
    ///
    /// # Errors
    ///
    /// When that is already known to be in vain.
    fn connect(&mut self, to: SocketAddr) -> Result<StreamId, Refusal>;

    /// Who connected to the guest: `[::]:0` when that is another guest, or is not known
    /// any more.
    fn client(&self, id: StreamId) -> SocketAddr;

    /// Receives what is there and fits; 0 when nothing more will come.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] when there is nothing yet; any other ends the
    /// connection.
    fn receive(&mut self, id: StreamId, into: &Buffers<'_>) -> io::Result<usize>;

    /// Sends as much as there is room for.
    ///
    /// # Errors
    ///
    /// As [`Network::receive`].
    fn send(&mut self, id: StreamId, from: &Buffers<'_>) -> io::Result<usize>;

    /// The same of bytes that were kept back.
    ///
    /// # Errors
    ///
    /// As [`Network::receive`].
    fn send_bytes(&mut self, id: StreamId, bytes: &[u8]) -> io::Result<usize>;

    /// Says that nothing more will be sent.
    fn end_sending(&mut self, id: StreamId);

    /// Forgets a connection.
    fn close(&mut self, id: StreamId, how: Close);

    /// Nobody is to arrive any more.
    fn shut(&mut self);

    /// Lets go of a connection that goes on: of its socket.
    fn give(&mut self, id: StreamId) -> Option<OwnedFd>;

    /// Takes over a connection's socket; none when there is no room for it.
    fn take(&mut self, socket: OwnedFd) -> Option<StreamId>;

    /// Describes itself, when it is [shut](Network::shut), for the same code in another
    /// process: of that, connections have the same ids. Nothing of it is changed.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    fn carry(&mut self, luggage: &mut Luggage) -> io::Result<Value>;

    /// It is here that the guest goes on, and that its connections end: somebody may
    /// arrive again, if that is how it was. Not to be shut any more.
    fn resume(&mut self, is_open: bool);

    /// Forgets all connections, of which another process has the sockets by now: nobody is
    /// told.
    fn let_go(&mut self);
}

/// A connection on its way from one guest to another.
#[derive(Debug)]
pub struct Moved {
    /// Its socket.
    pub socket: OwnedFd,
    /// The guest's port.
    pub port: u16,
    /// What came and was not read yet.
    pub unread: Vec<u8>,
    /// What was sent and the network has not taken yet.
    pub unsent: Vec<u8>,
}
