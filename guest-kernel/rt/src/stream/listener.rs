//! Connections from outside.

use core::fmt;
use core::future::poll_fn;

use super::Error;
use super::driver::{self, Device};
use super::socket::TcpStream;

/// Takes connections to one of the guest's ports. Dropped, it resets those that
/// nobody has accepted.
///
/// Of those there are 128 at most; more are reset as they come.
pub struct TcpListener {
    device: &'static Device,
    port: u16,
}

impl TcpListener {
    /// Listens on a port, the third number of the operator's `publish`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidPort`] for port 0, [`Error::AddrInUse`] for one that has a
    /// listener, [`Error::Open`] without a device.
    pub fn bind(port: u16) -> Result<Self, Error> {
        let device = driver::device()?;
        device.with(|table| table.bind(port))?;
        Ok(Self { device, port })
    }

    /// Waits for the next connection. Any number of tasks may wait.
    ///
    /// # Errors
    ///
    /// None so far.
    pub async fn accept(&self) -> Result<TcpStream, Error> {
        let accepted = poll_fn(|context| {
            self.device
                .with(|table| table.poll_accept(self.port, context))
        });
        Ok(TcpStream::of(self.device, accepted.await?))
    }

    /// Returns the port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        self.device.with(|table| table.unbind(self.port));
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        f.debug_struct("TcpListener").field("port", &port).finish()
    }
}
