//! The sockets of one guest.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use wharf_abi::stream::Refusal;
use wharf_machine::Buffers;
use wharf_machine::device::{Close, Happening, Network, StreamId};
use wharf_machine::handover::{FileRef, Luggage};

use super::acceptor::{prepare, reset};
use super::board::{
    Arrival, Board, Door, Guest, Routed, Share, Traffic, Waiting, next_id, not_before, upcoming,
};
use super::{CONNECTIONS_MAX, NetError, refused};
use crate::device::carried::{CarriedError, understood};
use crate::headroom;
use crate::units::nanos;

/// Events that are taken in at a stretch.
const EVENTS: usize = 256;

/// The number of the door's bell among those of connections.
const BELL: u64 = 0;

/// The address of another guest, and of who is gone.
const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

/// What an epoll tells of a connection: each change once.
const CHANGES: EpollFlags = EpollFlags::EPOLLIN
    .union(EpollFlags::EPOLLOUT)
    .union(EpollFlags::EPOLLRDHUP)
    .union(EpollFlags::EPOLLET);

/// A guest's sockets, behind its stream device. Dropped, they are all cut off.
#[derive(Debug)]
pub struct Sockets {
    board: Arc<Board>,
    door: Arc<Door>,
    arrived: Receiver<Arrival>,
    epoll: Epoll,
    sockets: HashMap<StreamId, Connected>,
    /// Whether the door was taken away.
    is_shut: bool,
    /// Whether these connections end here: not while another process may have them still.
    is_theirs: bool,
}

/// All of them, for another process.
#[derive(Debug, Serialize, Deserialize)]
struct CarriedSockets {
    /// Numbers from here on were never given to a connection.
    next: StreamId,
    sockets: Vec<CarriedSocket>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CarriedSocket {
    id: StreamId,
    socket: FileRef,
    is_trying: bool,
    /// For how long somebody has waited for an answer.
    asked_ns: Option<u64>,
}

#[derive(Debug)]
struct Connected {
    /// Shared with what is on its way to another process only.
    socket: Arc<Socket>,
    /// Whether it is still to be seen whether the other side answers.
    is_trying: bool,
    /// Since when somebody waits for an answer: since bytes came, until some go.
    asked: Option<Instant>,
}

impl Sockets {
    /// Sockets for a new guest, whose door is on the board.
    ///
    /// # Errors
    ///
    /// When the kernel has no descriptors left.
    pub fn new(
        board: Arc<Board>,
        guest: Guest,
        traffic: Arc<Traffic>,
        share: Arc<Share>,
    ) -> Result<Self, NetError> {
        let refused = refused("an epoll");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(&refused)?;
        let (door, arrived) = board.door(guest, traffic, share)?;
        let sockets = Self {
            board,
            door,
            arrived,
            epoll,
            sockets: HashMap::new(),
            is_shut: false,
            is_theirs: false,
        };
        let event = EpollEvent::new(EpollFlags::EPOLLIN, BELL);
        sockets
            .epoll
            .add(&sockets.door.bell, event)
            .map_err(refused)?;
        Ok(sockets)
    }

    /// The sockets of a guest that comes from another process. They count from now on, and
    /// are that one's until they are [resumed](Network::resume).
    ///
    /// # Errors
    ///
    /// As [`Sockets::new`], and when the description does not go with what came along.
    pub(crate) fn go_on(
        mut self,
        carried: &Value,
        luggage: &mut Luggage,
    ) -> Result<Self, CarriedError> {
        self.is_theirs = true;
        let carried: CarriedSockets = understood(carried)?;
        not_before(carried.next);
        let now = Instant::now();
        for it in carried.sockets {
            let socket = Socket::from(luggage.take_file(it.socket)?);
            let event = EpollEvent::new(CHANGES, it.id.0);
            self.epoll
                .add(&socket, event)
                .map_err(refused("an epoll"))?;
            let since = |ns| now.checked_sub(Duration::from_nanos(ns)).unwrap_or(now);
            let connected = Connected {
                socket: Arc::new(socket),
                is_trying: it.is_trying,
                asked: it.asked_ns.map(since),
            };
            if self.sockets.insert(it.id, connected).is_none() {
                self.door.traffic.open.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(self)
    }

    /// Has an epoll look after a socket.
    fn add(&mut self, socket: Socket, is_trying: bool) -> Option<StreamId> {
        let id = next_id();
        let event = EpollEvent::new(CHANGES, id.0);
        if let Err(e) = self.epoll.add(&socket, event) {
            log::warn!("a connection was dropped: epoll: {e}");
            self.gone(true);
            return None;
        }
        let connected = Connected {
            socket: Arc::new(socket),
            is_trying,
            asked: None,
        };
        self.sockets.insert(id, connected);
        Some(id)
    }

    /// Books the end of a connection that was counted.
    fn gone(&self, is_error: bool) {
        let traffic = &self.door.traffic;
        traffic.open.fetch_sub(1, Ordering::Relaxed);
        if is_error {
            traffic.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn happened(&self, event: &EpollEvent, happened: &mut Vec<Happening>) {
        let id = StreamId(event.data());
        let flags = event.events();
        let ends = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        if flags.intersects(EpollFlags::EPOLLIN | ends) {
            happened.push(Happening::Readable {
                id,
                ends: flags.intersects(ends),
            });
        }
        if flags.contains(EpollFlags::EPOLLOUT) {
            happened.push(Happening::Writable(id));
        }
    }

    /// Whether a connection that is being made has been.
    fn tried(&mut self, event: &EpollEvent) -> Option<Happening> {
        let id = StreamId(event.data());
        let connected = self.sockets.get_mut(&id).filter(|it| it.is_trying)?;
        let over = EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        if !event.events().intersects(over) {
            return None;
        }
        match connected.socket.take_error() {
            Ok(None) => {
                connected.is_trying = false;
                Some(Happening::Connected(id))
            }
            Ok(Some(e)) | Err(e) => Some(Happening::Failed(id, refusal(&e))),
        }
    }

    /// Books bytes that were moved.
    fn moved(&self, moved: &io::Result<usize>, counter: fn(&Traffic) -> &AtomicU64) {
        if let Ok(bytes) = moved {
            let bytes = u64::try_from(*bytes).unwrap_or(0);
            counter(&self.door.traffic).fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn socket(&self, id: StreamId) -> io::Result<&Socket> {
        let connected = self.sockets.get(&id);
        let connected = connected.ok_or(io::ErrorKind::NotConnected)?;
        Ok(&connected.socket)
    }

    /// A connection to another guest of this host.
    fn between(&self, port: usize) -> Result<Socket, Refusal> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, flags);
        let (ours, theirs) = pair.map_err(|_| Refusal::TooMany)?;
        let routed = self.board.route(Waiting {
            since: Instant::now(),
            port,
            socket: Socket::from(theirs),
            source: NOBODY,
            from: Some(self.door.guest.replica),
        });
        match routed {
            Routed::Taken => Ok(Socket::from(ours)),
            Routed::Nobody(waiting) => {
                // The other may be starting, as all may be.
                if self.board.wait(waiting) {
                    Ok(Socket::from(ours))
                } else {
                    Err(Refusal::Refused)
                }
            }
            Routed::Denied => Err(Refusal::Denied),
        }
    }

    fn outside(&self, to: SocketAddr) -> Result<Socket, Refusal> {
        if !self.board.lets_out(self.door.guest.replica, to) {
            return Err(Refusal::Denied);
        }
        let kind = Type::STREAM.nonblocking().cloexec();
        let domain = Domain::for_address(to);
        let socket = Socket::new(domain, kind, Some(Protocol::TCP));
        let socket = socket.map_err(|e| refusal(&e))?;
        let _ = prepare(&socket);
        match socket.connect(&to.into()) {
            Ok(()) => Ok(socket),
            Err(e) if e.raw_os_error() == Some(nix::libc::EINPROGRESS) => Ok(socket),
            Err(e) => Err(refusal(&e)),
        }
    }
}

impl Network for Sockets {
    fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    fn open(&mut self) {
        self.board.open(&self.door);
    }

    fn poll(&mut self, happened: &mut Vec<Happening>) -> bool {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => return false,
            Err(e) => {
                log::error!("a guest's sockets: epoll: {e}");
                0
            }
        };
        for event in events.iter().take(count) {
            if event.data() == BELL {
                // Only that it rang counts.
                let _ = self.door.bell.read();
                while let Ok(Arrival { socket, port }) = self.arrived.try_recv() {
                    if let Some(id) = self.add(socket, false) {
                        self.door.traffic.total.fetch_add(1, Ordering::Relaxed);
                        happened.push(Happening::Incoming { id, port });
                    }
                }
            } else {
                happened.extend(self.tried(event));
                self.happened(event, happened);
            }
        }
        count < EVENTS
    }

    fn connect(&mut self, to: SocketAddr) -> Result<StreamId, Refusal> {
        let open = &self.door.traffic.open;
        if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            return Err(Refusal::TooMany);
        }
        let socket = match self.board.port_at(to) {
            Some(port) => self.between(port)?,
            None => self.outside(to)?,
        };
        if !headroom::has_room_for(socket.as_fd()) {
            return Err(Refusal::TooMany);
        }
        self.door.traffic.open.fetch_add(1, Ordering::Relaxed);
        let id = self.add(socket, true).ok_or(Refusal::TooMany)?;
        self.door.traffic.total.fetch_add(1, Ordering::Relaxed);
        Ok(id)
    }

    fn client(&self, id: StreamId) -> SocketAddr {
        let client = self.socket(id).and_then(Socket::peer_addr);
        // Other guests have none.
        let client = client.ok().and_then(|it| it.as_socket());
        client.unwrap_or(NOBODY)
    }

    fn receive(&mut self, id: StreamId, into: &Buffers<'_>) -> io::Result<usize> {
        let moved = into.receive_from(self.socket(id)?.as_fd());
        self.moved(&moved, |it| &it.received);
        if let (Ok(1..), Some(connected)) = (&moved, self.sockets.get_mut(&id)) {
            connected.asked.get_or_insert_with(Instant::now);
        }
        moved
    }

    fn send(&mut self, id: StreamId, from: &Buffers<'_>) -> io::Result<usize> {
        let moved = from.send_to(self.socket(id)?.as_fd());
        self.moved(&moved, |it| &it.sent);
        if let (Ok(1..), Some(connected)) = (&moved, self.sockets.get_mut(&id))
            && let Some(asked) = connected.asked.take()
        {
            self.door.traffic.answers.add(asked.elapsed());
        }
        moved
    }

    fn send_bytes(&mut self, id: StreamId, bytes: &[u8]) -> io::Result<usize> {
        let moved = self.socket(id)?.send(bytes);
        self.moved(&moved, |it| &it.sent);
        moved
    }

    fn end_sending(&mut self, id: StreamId) {
        if let Ok(socket) = self.socket(id) {
            // Who is gone need not be told.
            let _ = socket.shutdown(std::net::Shutdown::Write);
        }
    }

    fn close(&mut self, id: StreamId, how: Close) {
        if let Some(connected) = self.sockets.remove(&id) {
            if how == Close::Reset {
                reset(&connected.socket);
            }
            self.gone(how == Close::Reset);
        }
    }

    fn shut(&mut self) {
        self.is_shut = true;
        self.board.close(&self.door);
    }

    fn give(&mut self, id: StreamId) -> Option<OwnedFd> {
        let connected = self.sockets.remove(&id)?;
        // What is not there cannot be taken out; it is closed with the epoll.
        let _ = self.epoll.delete(&connected.socket);
        self.gone(false);
        Arc::into_inner(connected.socket).map(OwnedFd::from)
    }

    fn take(&mut self, socket: OwnedFd) -> Option<StreamId> {
        self.door.traffic.open.fetch_add(1, Ordering::Relaxed);
        self.add(Socket::from(socket), false)
    }

    fn carry(&mut self, luggage: &mut Luggage) -> io::Result<Value> {
        let sockets = self.sockets.iter().map(|(id, connected)| CarriedSocket {
            id: *id,
            socket: luggage.lend_file(&connected.socket),
            is_trying: connected.is_trying,
            asked_ns: connected.asked.map(|asked| nanos(asked.elapsed())),
        });
        let carried = CarriedSockets {
            sockets: sockets.collect(),
            next: upcoming(),
        };
        serde_json::to_value(carried).map_err(io::Error::other)
    }

    fn resume(&mut self, is_open: bool) {
        self.is_theirs = false;
        if std::mem::take(&mut self.is_shut) {
            self.arrived = self.board.put_back(&self.door);
        }
        if is_open {
            self.board.open(&self.door);
        }
    }

    fn let_go(&mut self) {
        let all = std::mem::take(&mut self.sockets);
        for _ in all {
            self.gone(false);
        }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // Nobody arrives after this, so all can be counted.
        self.board.close(&self.door);
        let left = self.sockets.len().saturating_add(self.arrived.len());
        for connected in self.sockets.values() {
            // What is set of a socket is set wherever else it is, too.
            if !self.is_theirs {
                reset(&connected.socket);
            }
        }
        for _ in 0..left {
            self.gone(!self.is_theirs);
        }
    }
}

fn refusal(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Refusal::Refused,
        io::ErrorKind::TimedOut => Refusal::TimedOut,
        _ => match error.raw_os_error() {
            Some(
                nix::libc::EMFILE | nix::libc::ENFILE | nix::libc::ENOBUFS | nix::libc::ENOMEM,
            ) => Refusal::TooMany,
            _ => Refusal::Unreachable,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    use socket2::Socket;
    use wharf_machine::device::{Network, StreamId};
    use wharf_machine::handover::Luggage;
    use wharf_model::policy::Verdict;

    use super::super::board::{Arrival, Board, Routed, Waiting};
    use super::super::{Guest, Publish};
    use super::{NOBODY, Sockets};
    use crate::device::carried::passed;

    fn board() -> Arc<Board> {
        let port = super::super::board::Port {
            task: 0,
            publish: Publish {
                address: NOBODY,
                guest_port: 80,
            },
        };
        Arc::new(Board::new(Box::new(|_| Verdict::Target(0)), vec![port]).unwrap())
    }

    fn sockets(board: &Arc<Board>) -> Sockets {
        let guest = Guest::default();
        Sockets::new(Arc::clone(board), guest, Arc::default(), Arc::default()).unwrap()
    }

    fn connection() -> (TcpStream, Socket) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0.into())
    }

    /// Whose a connection is decides who ends it, and how.
    #[test]
    fn a_process_that_does_not_take_a_guest_ends_none_of_its_connections() {
        let (here, there) = (board(), board());
        let mut old = sockets(&here);
        let (mut client, socket) = connection();
        let id = old.take(socket.into()).unwrap();
        old.shut();
        let mut luggage = Luggage::default();
        let carried = old.carry(&mut luggage).unwrap();
        let go_on = || {
            let made = sockets(&there).go_on(&carried, &mut passed(&luggage));
            made.unwrap()
        };
        drop(go_on());
        assert_eq!(old.socket(id).unwrap().linger().unwrap(), None);
        client.write_all(b"on").unwrap();
        old.resume(true);
        // Another tries, and has it.
        let mut new = go_on();
        new.resume(true);
        old.let_go();
        drop((old, luggage));
        let mut bytes = [0; 2];
        let mut socket = new.socket(id).unwrap();
        socket.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"on");
        drop(new);
        let cut = client.read(&mut bytes).unwrap_err();
        assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionReset);
    }

    /// However often it is told to go on, a guest has one door.
    #[test]
    fn who_goes_on_is_found_at_one_door() {
        let board = board();
        let mut guest = sockets(&board);
        let arrive = || {
            let (client, socket) = connection();
            let waiting = Waiting {
                since: std::time::Instant::now(),
                port: 0,
                socket,
                source: NOBODY,
                from: None,
            };
            (client, board.route(waiting))
        };
        guest.open();
        guest.shut();
        assert!(matches!(arrive().1, Routed::Nobody(_)));
        for _ in 0..3 {
            guest.resume(true);
        }
        let come = [arrive(), arrive()];
        assert!(
            come.iter()
                .all(|(_, routed)| matches!(routed, Routed::Taken))
        );
        let ports: Vec<u16> = guest
            .arrived
            .try_iter()
            .map(|Arrival { port, .. }| port)
            .collect();
        assert_eq!(ports, [80, 80]);
        // One that had not been open stays closed.
        guest.shut();
        guest.resume(false);
        assert!(matches!(arrive().1, Routed::Nobody(_)));
    }

    #[test]
    fn numbers_that_another_process_gave_out_are_not_given_again() {
        let mut old = sockets(&board());
        let carried = old.carry(&mut Luggage::default()).unwrap().to_string();
        let mut later: serde_json::Value = serde_json::from_str(&carried).unwrap();
        let next = later["next"].as_u64().unwrap() + 1000;
        later["next"] = next.into();
        let mut new = sockets(&board())
            .go_on(&later, &mut Luggage::default())
            .unwrap();
        let id = new.take(connection().1.into()).unwrap();
        assert!(id >= StreamId(next), "{id:?}");
    }
}
