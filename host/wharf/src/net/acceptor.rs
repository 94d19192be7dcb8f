//! The thread that takes connections to published ports.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::board::{Board, Port, Routed, Router, Waiting, ring};
use super::{NetError, Publish, WAITING_MAX, refused};
use crate::headroom;

/// Connections that wait for the acceptor in the kernel.
const BACKLOG: i32 = 1024;

/// For how long they wait, unless the host is being handed over.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether they waited too long.
const LOOK: Duration = Duration::from_millis(200);

/// Pause after a connection could not be taken for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

/// Connections of one port that are taken at a stretch.
const AT_ONCE: usize = 64;

/// When the kernel asks a silent client whether it is still there, and gives up on
/// one that does not take what it was sent.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// The number of the board's bell among those of ports.
const BELL: u64 = u64::MAX;

/// Takes connections until it is dropped.
#[derive(Debug)]
pub struct Acceptor {
    board: Arc<Board>,
    listeners: Arc<[Socket]>,
    over: Arc<AtomicBool>,
    /// None without ports, and while it rests.
    thread: Option<JoinHandle<Vec<Waiting>>>,
}

impl Acceptor {
    /// Listens on every port of every task; connections go where `router` says.
    ///
    /// # Errors
    ///
    /// When a port cannot be had. Then none is.
    pub fn start<'a>(
        router: Box<Router>,
        tasks: impl Iterator<Item = (&'a str, &'a [Publish])>,
    ) -> Result<Self, NetError> {
        headroom::use_all_descriptors();
        let mut ports = Vec::new();
        let mut listeners = Vec::new();
        for (task, (name, published)) in tasks.enumerate() {
            for publish in published {
                let address = publish.address;
                let listener = listen(address).map_err(|source| NetError::Listen {
                    task: name.to_owned(),
                    address,
                    source,
                })?;
                listeners.push(listener);
                ports.push(Port {
                    task,
                    publish: *publish,
                });
            }
        }
        Self::on(Board::new(router, ports)?, listeners)
    }

    /// Goes on with the ports of another process, which still listens on them: what comes
    /// is taken where its guest is, until [`Acceptor::share`] says that this is here.
    ///
    /// # Errors
    ///
    /// When the kernel has no descriptors or threads left.
    pub fn go_on(router: Box<Router>, ports: Vec<SharedPort>) -> Result<Self, NetError> {
        headroom::use_all_descriptors();
        let (ports, listeners) = ports
            .into_iter()
            .map(|it| {
                let SharedPort {
                    task,
                    publish,
                    listener,
                } = it;
                (Port { task, publish }, Socket::from(listener))
            })
            .unzip();
        let board = Board::new(router, ports)?;
        board.share(true);
        Self::on(board, listeners)
    }

    fn on(board: Board, listeners: Vec<Socket>) -> Result<Self, NetError> {
        let mut acceptor = Self {
            board: Arc::new(board),
            listeners: listeners.into(),
            over: Arc::default(),
            thread: None,
        };
        acceptor.run()?;
        Ok(acceptor)
    }

    /// Takes connections, if there are ports.
    fn run(&mut self) -> Result<(), NetError> {
        if self.listeners.is_empty() {
            return Ok(());
        }
        self.over.store(false, Ordering::Release);
        let (board, over) = (Arc::clone(&self.board), Arc::clone(&self.over));
        let serving = Serving::new(board, Arc::clone(&self.listeners), over)?;
        let thread = std::thread::Builder::new().name("acceptor".to_owned());
        let thread = thread.spawn(move || serving.run());
        self.thread = Some(thread.map_err(|source| NetError::System {
            what: "a thread",
            source,
        })?);
        Ok(())
    }

    /// The ports, for another process that is to listen on them as well.
    ///
    /// # Errors
    ///
    /// When this process has no descriptors left.
    pub fn ports(&self) -> io::Result<Vec<SharedPort>> {
        let ports = self.board.ports().iter().zip(self.listeners.iter());
        let shared = |(port, listener): (&Port, &Socket)| {
            Ok(SharedPort {
                task: port.task,
                publish: port.publish,
                listener: listener.try_clone()?.into(),
            })
        };
        ports.map(shared).collect()
    }

    /// Says whether another process takes connections of the same ports. Then only those
    /// are taken for which there is a guest here.
    pub fn share(&self, shares: bool) {
        self.board.share(shares);
    }

    /// Takes no more connections, and returns those that wait for a guest.
    pub fn rest(&mut self) -> Vec<Waiting> {
        self.over.store(true, Ordering::Release);
        ring(self.board.opened());
        // It cannot panic; if it did, it is over all the same.
        let waiting = self.thread.take().map(JoinHandle::join);
        waiting.and_then(Result::ok).unwrap_or_default()
    }

    /// Goes on after a [rest](Acceptor::rest), or after that of another process, with the
    /// connections that waited.
    ///
    /// # Errors
    ///
    /// When there are no descriptors or threads left.
    pub fn wake(&mut self, waiting: Vec<Waiting>) -> Result<(), NetError> {
        self.board.wait_on(waiting);
        if self.thread.is_none() {
            self.run()?;
        }
        Ok(())
    }

    /// Where guests put up their doors.
    #[must_use]
    pub const fn board(&self) -> &Arc<Board> {
        &self.board
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        drop(self.rest());
    }
}

/// A port that is published and listened on.
#[derive(Debug)]
pub struct SharedPort {
    /// The task's place in the configuration.
    pub task: usize,
    /// What is published.
    pub publish: Publish,
    /// The listening socket.
    pub listener: OwnedFd,
}

struct Serving {
    board: Arc<Board>,
    listeners: Arc<[Socket]>,
    /// Of each port, who found nobody.
    waiting: Vec<VecDeque<Waiting>>,
    /// Of each port, whether connections are taken.
    listens: Vec<bool>,
    epoll: Epoll,
    over: Arc<AtomicBool>,
    /// Whether it was said that there are too many connections.
    said_full: bool,
}

impl Serving {
    fn new(
        board: Arc<Board>,
        listeners: Arc<[Socket]>,
        over: Arc<AtomicBool>,
    ) -> Result<Self, NetError> {
        let refused = refused("an epoll");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(&refused)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, BELL);
        epoll.add(board.opened(), event).map_err(refused)?;
        Ok(Self {
            board,
            waiting: listeners.iter().map(|_| VecDeque::new()).collect(),
            listens: vec![false; listeners.len()],
            listeners,
            epoll,
            over,
            said_full: false,
        })
    }

    /// Serves until it is over, and returns who still waits.
    fn run(mut self) -> Vec<Waiting> {
        let mut events = [EpollEvent::empty(); 32];
        while !self.over.load(Ordering::Acquire) {
            self.listen();
            let anybody = self.waiting.iter().any(|it| !it.is_empty());
            let timeout = if anybody {
                u16::try_from(LOOK.as_millis()).map_or(EpollTimeout::ZERO, EpollTimeout::from)
            } else {
                EpollTimeout::NONE
            };
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => 0,
                Err(e) => {
                    log::error!("published ports are served no more: epoll: {e}");
                    break;
                }
            };
            let ready: Vec<u64> = events.iter().take(count).map(EpollEvent::data).collect();
            if ready.contains(&BELL) {
                // Only that it rang counts.
                let _ = self.board.opened().read();
                let between: Vec<Waiting> = self.board.waiting().collect();
                for waiting in between {
                    self.give(waiting);
                }
            }
            for number in 0..self.listeners.len() {
                self.look_after_waiting(number);
                if u64::try_from(number).is_ok_and(|it| ready.contains(&it)) {
                    self.accept(number);
                }
            }
        }
        let between: Vec<Waiting> = self.board.waiting().collect();
        let waiting = self.waiting.into_iter().flatten();
        waiting.chain(between).collect()
    }

    /// Looks at which ports connections are to be taken: at all, but for those of guests
    /// that are in another process.
    fn listen(&mut self) {
        let ports = self.listens.iter_mut().zip(self.listeners.iter());
        for ((listens, listener), number) in ports.zip(0_u64..) {
            let port = usize::try_from(number).unwrap_or(usize::MAX);
            let wanted = !self.board.is_shared() || self.board.leads_somewhere(port);
            if wanted == *listens {
                continue;
            }
            let done = if wanted {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
                self.epoll.add(listener, event)
            } else {
                self.epoll.delete(listener)
            };
            match done {
                Ok(()) => *listens = wanted,
                Err(e) => log::error!("a published port: epoll: {e}"),
            }
        }
    }

    fn accept(&mut self, number: usize) {
        for _ in 0..AT_ONCE {
            let Some(listener) = self.listeners.get(number) else {
                return;
            };
            match listener.accept() {
                Ok((socket, _)) if !headroom::has_room_for(socket.as_fd()) => {
                    reset(&socket);
                    if !self.said_full {
                        self.said_full = true;
                        log::warn!("connections are refused: raise `ulimit -n` for more of them");
                    }
                }
                Ok((socket, source)) => {
                    self.said_full = false;
                    // A socket that refuses its options is as good without them.
                    let _ = prepare(&socket);
                    if let Some(source) = source.as_socket() {
                        self.give(Waiting {
                            since: Instant::now(),
                            port: number,
                            socket,
                            source,
                            from: None,
                        });
                    }
                }
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock => return,
                    // Who has gone again already.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    _ => {
                        log::warn!("a connection was not taken: {e}");
                        std::thread::sleep(PAUSE);
                        return;
                    }
                },
            }
        }
    }

    /// Gives a connection to who is to have it, or has it wait for somebody, if it has not
    /// waited too long.
    fn give(&mut self, connection: Waiting) {
        // Whom they wait for may be on the way to another process, where they follow.
        let is_shared = self.board.is_shared();
        if let Routed::Nobody(waiting) = self.board.route(connection)
            && let Some(others) = self.waiting.get_mut(waiting.port)
        {
            let has_time = is_shared || waiting.since.elapsed() < PATIENCE;
            if has_time && others.len() < WAITING_MAX {
                others.push_back(waiting);
            } else {
                reset(&waiting.socket);
            }
        }
    }

    /// Tries again for those that wait.
    fn look_after_waiting(&mut self, number: usize) {
        let Some(waiting) = self.waiting.get_mut(number) else {
            return;
        };
        for waiting in std::mem::take(waiting) {
            self.give(waiting);
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    // What still lingers of a host before this one is no reason to refuse.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // IPv4 has an address of its own to be published on.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Has a client that is gone noticed, and small answers sent at once.
pub(super) fn prepare(socket: &Socket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE))?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}

/// Has the other side told that it was cut off, when the socket is dropped.
pub(super) fn reset(socket: &Socket) {
    // If not, it is told that this was all.
    let _ = socket.set_linger(Some(Duration::ZERO));
}
