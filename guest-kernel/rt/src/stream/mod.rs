//! Streams: TCP connections, which the host keeps up.
//!
//! ```ignore
//! use embedded_io_async::{Read, Write};
//! use wharf::stream::{Error, TcpListener};
//!
//! #[wharf::main(stream = ["net"])]
//! async fn main() -> Result<(), Error> {
//!     let listener = TcpListener::bind(7)?;
//!     loop {
//!         let mut stream = listener.accept().await?;
//!         wharf::task::spawn(async move {
//!             let mut buffer = [0; 1024];
//!             while let Ok(count @ 1..) = stream.read(&mut buffer).await {
//!                 if stream.write_all(&buffer[..count]).await.is_err() {
//!                     break;
//!                 }
//!             }
//!         });
//!     }
//! }
//! ```
//!
//! A guest has no addresses and no packets: the operator says which of the host's
//! ports lead to which port of the guest, and the host's router which connections the
//! guest may make. The one stream device of an image is the first that it declares; it
//! is opened by the first [`TcpListener::bind`] or [`TcpStream::connect`], and to the
//! host that is the sign that the guest can be connected to.
//!
//! What is written goes out when the guest next waits, all of it in one exit, so small
//! writes cost little, and [`flush`](embedded_io_async::Write::flush) has nothing to
//! do. Who writes faster than the peer reads, waits.
//!
//! Inside: `driver.rs` has the rings, `table.rs` the connections, `connection.rs` one
//! of them.

mod connection;
mod credit;
mod driver;
mod error;
mod listener;
mod output;
mod packet;
#[cfg(feature = "picoserve")]
pub mod picoserve;
mod socket;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use driver::{freeze, resting, thaw};
pub use error::Error;
pub use listener::TcpListener;
pub use socket::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, Shutdown, TcpStream, WriteHalf};
pub use wharf_abi::stream::Refusal;
