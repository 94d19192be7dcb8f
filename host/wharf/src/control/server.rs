//! The thread that serves the socket, and what it grants to one client.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::pin::pin;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time;
use tokio_io_timeout::TimeoutStream;

use super::app::App;
use super::error::ControlError;
use super::routes;
use super::socket::{self, SharedSocket, Socket};
use crate::cell::{Accepting, Cell, ControlFiles};

/// Connections at once. Others wait until one ends.
const CONNECTIONS: usize = 64;

/// Connections that may follow something, and so stay for as long as they like.
pub(super) const FOLLOWERS: usize = 48;

/// Bytes of a request's head, and of a response that is not sent yet.
const BUFFER_BYTES: usize = 16 * 1024;

/// How long a client may take to read a byte of a response.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a client may take to send a request's head, and so to hold one of the
/// connections without a word. Much less than clients wait for an answer, so that
/// those who come after 64 who say nothing still get theirs.
const HEAD_PATIENCE: Duration = Duration::from_secs(3);

/// How often it is looked whether a client has gone.
const GONE_PERIOD: Duration = Duration::from_millis(500);

/// How long a client may take to read what is left at the end.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// A socket that clients can connect to and nobody serves yet.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
}

/// What a server tells of its process besides what the cell knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServeConfig {
    /// Worker threads of the cell.
    pub workers: u32,
    /// The file that the cell was configured by, with U+FFFD in place of what is not UTF-8.
    pub config: Option<String>,
}

/// A server at work. When this is dropped, it ends by itself a little later.
#[derive(Debug)]
pub struct Serving {
    end: watch::Sender<()>,
    thread: JoinHandle<()>,
    socket: SharedSocket,
}

impl Server {
    /// Makes the socket, readable and writable by its owner only, in place of one
    /// that a killed process left behind. To be done before tasks are started: of
    /// two hosts at one socket, one is refused.
    ///
    /// # Errors
    ///
    /// When somebody serves `path` already, when it is too long for a socket or is
    /// a file of another kind, and when the directory cannot be written to.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let socket = Socket::listen(path)?;
        Ok(Self { socket })
    }

    /// Goes on with the socket of another process, which accepts nobody there any more. It
    /// is that one's until it is [owned](Serving::own).
    ///
    /// # Errors
    ///
    /// When its lock's file cannot be written.
    pub fn take_over(files: ControlFiles) -> Result<Self, ControlError> {
        let socket = Socket::take_over(files)?;
        Ok(Self { socket })
    }

    /// Whether [`Server::bind`] could make a socket at `path`, as far as the path tells.
    /// Makes nothing.
    ///
    /// # Errors
    ///
    /// When it is too long for a socket or is a file of another kind.
    pub fn check(path: &Path) -> Result<(), ControlError> {
        socket::check(path)
    }

    /// Serves a cell on a thread of its own.
    ///
    /// # Errors
    ///
    /// When there are no threads or descriptors left.
    pub fn start(self, cell: Cell, config: ServeConfig) -> Result<Serving, ControlError> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(ControlError::Thread)?;
        let listener = {
            let _context = runtime.enter();
            let listener = self.socket.listener().map_err(ControlError::Thread)?;
            UnixListener::from_std(listener).map_err(ControlError::Thread)?
        };
        let (end, ended) = watch::channel(());
        let (accepting, who) = watch::channel(Accepting::All);
        let socket = SharedSocket::new(self.socket);
        let app = App::new(cell, config, (socket.clone(), accepting), ended.clone());
        let router = routes::router(app);
        let its = socket.clone();
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                runtime.block_on(serve(listener, router, (ended, who)));
                its.close();
            })
            .map_err(ControlError::Thread)?;
        Ok(Serving {
            end,
            thread,
            socket,
        })
    }
}

impl Serving {
    /// The socket is this process's from now on: another's that was taken over.
    pub fn own(&self) {
        self.socket.own();
    }

    /// Ends: followers get what there is, at most for a second, and the socket is
    /// removed. To be called when the cell has ended.
    pub fn end(self) {
        drop(self.end);
        if self.thread.join().is_err() {
            log::error!("the control socket's thread panicked");
        }
    }
}

/// Accepts until the end, and then waits for the connections that are left.
async fn serve(
    listener: UnixListener,
    router: Router,
    (mut end, mut who): (watch::Receiver<()>, watch::Receiver<Accepting>),
) {
    let mut connections = JoinSet::new();
    while *who.borrow() != Accepting::Never {
        tokio::select! {
            accepted = listener.accept(),
                if connections.len() < CONNECTIONS && *who.borrow() == Accepting::All => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, router.clone(), end.clone()));
                }
                Err(error) => refused(&error).await,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            // Nothing is ever sent: the sender goes.
            _ = end.changed() => break,
            Ok(()) = who.changed() => {}
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Too many open files, most likely, and the connection still waits: trying again
/// at once would be a busy loop.
async fn refused(error: &io::Error) {
    log::debug!("cannot accept a connection: {error}");
    time::sleep(Duration::from_millis(100)).await;
}

/// Returns when a client has gone: when it neither says nor hears anything any more.
async fn gone(client: OwnedFd) {
    loop {
        time::sleep(GONE_PERIOD).await;
        let mut looked = [PollFd::new(client.as_fd(), PollFlags::empty())];
        let is_gone = poll(&mut looked, PollTimeout::ZERO).is_ok_and(|found| found > 0);
        if is_gone {
            return;
        }
    }
}

/// Serves one client until it leaves, bores us, or the host ends.
async fn connection(stream: UnixStream, router: Router, mut end: watch::Receiver<()>) {
    let peer = match stream.as_fd().try_clone_to_owned() {
        Ok(peer) => peer,
        Err(error) => return refused(&error).await,
    };
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(PATIENCE));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(BUFFER_BYTES)
        // Who says no more still hears; who has gone is another matter.
        .half_close(true)
        .serve_connection(
            TokioIo::new(Box::pin(stream)),
            TowerToHyperService::new(router),
        );
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = gone(peer) => return,
        _ = end.changed() => {
            connection.as_mut().graceful_shutdown();
            time::timeout(LAST_PATIENCE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        log::debug!("a client was left: {error}");
    }
}
