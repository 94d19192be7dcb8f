//! Streams as sockets of the HTTP server [`picoserve`], and its timers.
//!
//! ```ignore
//! let router = Router::new().route("/", get(|| async { "hello" }));
//! picoserve::serve(TcpListener::bind(80)?, router).await?;
//! ```

use alloc::boxed::Box;
use alloc::vec;

use ::picoserve::io::{Socket, Write};
use ::picoserve::mem::{BorrowedBuffer, BorrowedCursor};
use ::picoserve::routing::PathRouter;
use ::picoserve::time::Duration;
use ::picoserve::{Config, Error as ServerError, Router, Server, Timeouts, Timer as Timers};
use embedded_io_async::{Read as _, Write as _};

use super::{Error, ReadHalf, Shutdown, TcpListener, TcpStream, WriteHalf};
use crate::task;

/// Bytes that are lent to be formatted into: a status line and a few headers.
const LENT_LEN: usize = 1024;

/// Bytes of a request's line and headers, at most.
const REQUEST_LEN: usize = 2048;

/// What [`serve`] gives a client: half a minute a step, and a minute between requests.
static CONFIG: Config = Config::new(Timeouts {
    start_read_request: Duration::from_secs(30),
    persistent_start_read_request: Duration::from_secs(60),
    read_request: Duration::from_secs(30),
    write: Duration::from_secs(30),
})
.keep_connection_alive();

/// Serves the connections of a listener for ever, each in a task of its own. Who needs
/// other timeouts or longer headers gives [`Server::custom`] a stream and a [`Timer`].
///
/// # Errors
///
/// When no more connections can be accepted.
pub async fn serve(
    listener: TcpListener,
    router: Router<impl PathRouter + 'static>,
) -> Result<(), Error> {
    let router = &*Box::leak(Box::new(router));
    loop {
        let stream = listener.accept().await?;
        task::spawn(async move {
            let mut buffer = vec![0; REQUEST_LEN];
            let server = Server::custom(router, Timer, &CONFIG, &mut buffer);
            // A client that breaks off is nobody's loss.
            let _ = server.serve(stream).await;
        });
    }
}

/// The runtime that streams and [`Timer`] are of.
#[derive(Debug)]
pub struct Runtime(());

/// Timers of this runtime.
#[derive(Clone, Copy, Debug)]
pub struct Timer;

impl Timers<Runtime> for Timer {
    async fn delay(&self, duration: Duration) {
        crate::timer::Timer::after_millis(duration.as_millis()).await;
    }
}

impl Write for WriteHalf<'_> {
    async fn write_with<F: FnOnce(BorrowedCursor<'_>) -> R, R>(
        &mut self,
        fill: F,
    ) -> Result<R, Error> {
        let mut bytes = [0; LENT_LEN];
        let mut buffer = BorrowedBuffer::new(&mut bytes);
        let result = fill(buffer.unfilled());
        self.write_all(buffer.filled()).await?;
        Ok(result)
    }
}

impl Socket<Runtime> for TcpStream {
    type Error = Error;
    type ReadHalf<'a> = ReadHalf<'a>;
    type WriteHalf<'a> = WriteHalf<'a>;

    fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        self.split()
    }

    /// Also comes after an answer to a request that makes no sense, which a reset
    /// would take from the client. So it is no more than dropped.
    async fn abort<T: Timers<Runtime>>(
        self,
        _: &Timeouts,
        _: &T,
    ) -> Result<(), ServerError<Error>> {
        Ok(())
    }

    /// Lets the client read to the end before the connection is gone.
    async fn shutdown<T: Timers<Runtime>>(
        mut self,
        timeouts: &Timeouts,
        timer: &T,
    ) -> Result<(), ServerError<Error>> {
        Self::shutdown(&mut self, Shutdown::Write);
        let rest = async {
            let mut buffer = [0; 128];
            while self.read(&mut buffer).await? > 0 {}
            Ok(())
        };
        let read = timer.run_with_timeout(timeouts.read_request, rest).await;
        read.map_err(ServerError::ReadTimeout)?
            .map_err(ServerError::Read)
    }
}
