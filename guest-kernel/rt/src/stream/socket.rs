//! Connections, and their two directions.

use alloc::rc::Rc;
use core::fmt;
use core::future::poll_fn;
use core::net::SocketAddr;

use embedded_io_async::{ErrorType, Read, Write};
use wharf_abi::stream::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

use super::Error;
use super::connection::BOTH;
use super::driver::{self, Device};

/// A direction of a connection, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// This side reads no more. What comes is thrown away.
    Read,
    /// This side writes no more. The peer reads what was written, and then the end.
    Write,
    /// Both.
    Both,
}

/// A connection.
///
/// Reading 0 bytes is the end of what the peer sends; writing may go on then.
/// Dropped, it is shut down: what was written still reaches the peer.
pub struct TcpStream(Handle);

/// The direction from the peer, of a stream that is used elsewhere meanwhile.
#[derive(Debug)]
pub struct ReadHalf<'a>(&'a Handle);

/// The direction to the peer, of a stream that is used elsewhere meanwhile.
#[derive(Debug)]
pub struct WriteHalf<'a>(&'a Handle);

/// The direction from the peer. The connection ends when both halves are dropped.
#[derive(Debug)]
pub struct OwnedReadHalf(Rc<Handle>);

/// The direction to the peer. Dropped, it shuts down this direction.
#[derive(Debug)]
pub struct OwnedWriteHalf(Rc<Handle>);

impl TcpStream {
    /// Connects to an address, if the host's router allows that.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] says why it does not, or cannot; [`Error::Open`] without a
    /// device.
    pub async fn connect(address: SocketAddr) -> Result<Self, Error> {
        let device = driver::device()?;
        // From here on it is dropped with the future.
        let stream = Self::of(device, device.with(|table| table.connect(address)));
        let Handle { device, slot } = stream.0;
        poll_fn(|context| device.with(|table| table.poll_connected(slot, context))).await?;
        Ok(stream)
    }

    pub(super) fn of(device: &'static Device, slot: usize) -> Self {
        Self(Handle { device, slot })
    }

    /// Returns the address of the client that was accepted, or the one that was connected
    /// to. Of a client that is another guest of the same host, or was gone before the
    /// host asked for its address, it is `[::]:0`.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.0.device.with(|table| table.peer(self.0.slot))
    }

    /// Lends the two directions, to be used beside each other in one task.
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        (ReadHalf(&self.0), WriteHalf(&self.0))
    }

    /// Takes the stream apart into its two directions, each for a task of its own.
    #[must_use]
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        let handle = Rc::new(self.0);
        (OwnedReadHalf(handle.clone()), OwnedWriteHalf(handle))
    }

    /// Ends one direction, or both. What was written still reaches the peer.
    pub fn shutdown(&mut self, how: Shutdown) {
        self.0.shutdown(how);
    }

    /// Ends the connection at once. The peer learns that it was cut off.
    pub fn abort(self) {
        self.0.device.with(|table| table.abort(self.0.slot));
    }
}

impl OwnedWriteHalf {
    /// Ends this direction. What was written still reaches the peer.
    pub fn shutdown(&mut self) {
        self.0.shutdown(Shutdown::Write);
    }
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Whoever has it has the connection of that slot.
struct Handle {
    device: &'static Device,
    slot: usize,
}

impl Handle {
    async fn read(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        let Self { device, slot } = *self;
        poll_fn(|context| device.with(|table| table.poll_read(slot, buffer, context))).await
    }

    async fn write(&self, bytes: &[u8]) -> Result<usize, Error> {
        let Self { device, slot } = *self;
        poll_fn(|context| device.with(|table| table.poll_write(slot, bytes, context))).await
    }

    fn shutdown(&self, how: Shutdown) {
        let directions = match how {
            Shutdown::Read => SHUTDOWN_RECEIVE,
            Shutdown::Write => SHUTDOWN_SEND,
            Shutdown::Both => BOTH,
        };
        self.device
            .with(|table| table.shutdown(self.slot, directions));
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.device.with(|table| table.close(self.slot));
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("slot", &self.slot).finish()
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TcpStream").field(&self.0).finish()
    }
}

/// Has a type read, write, or both, by the handle in it.
macro_rules! directions {
    ($($type:ty: $($direction:ident)+;)+) => {$(
        impl ErrorType for $type {
            type Error = Error;
        }

        $(directions!(@$direction $type);)+
    )+};
    (@Read $type:ty) => {
        impl Read for $type {
            async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
                self.0.read(buffer).await
            }
        }
    };
    (@Write $type:ty) => {
        impl Write for $type {
            async fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
                self.0.write(bytes).await
            }

            /// What was written is on its way; there is nothing to wait for.
            async fn flush(&mut self) -> Result<(), Error> {
                Ok(())
            }
        }
    };
}

directions! {
    TcpStream: Read Write;
    ReadHalf<'_>: Read;
    WriteHalf<'_>: Write;
    OwnedReadHalf: Read;
    OwnedWriteHalf: Write;
}
