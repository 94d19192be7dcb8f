//! Which ports lead to which task, and which guests take connections.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::sys::eventfd::EventFd;
use socket2::Socket;
use wharf_machine::device::StreamId;
use wharf_model::policy::{Connection, Direction, Endpoint, Target, Verdict};

use super::{CONNECTIONS_MAX, NetError, Publish, Times, WAITING_MAX, refused};

/// Most guests that a router chooses among.
const TARGETS_MAX: usize = 64;

/// Who says where a connection goes. The verdict is final: a target, out, or no.
pub type Router = dyn Fn(Connection) -> Verdict + Send + Sync;

/// The ports and guests of a cell.
pub struct Board {
    router: Box<Router>,
    ports: Vec<Port>,
    doors: Mutex<Vec<Arc<Door>>>,
    /// Tells the acceptor that a guest takes connections now, or that one wants to
    /// be connected.
    opened: EventFd,
    /// Whether another process has some of the guests, and takes connections for them.
    is_shared: AtomicBool,
    /// Connections that have to wait, but are not the acceptor's yet.
    waiting: (Sender<Waiting>, Receiver<Waiting>),
}

/// A connection that found nobody.
#[derive(Debug)]
pub struct Waiting {
    /// Since when it waits.
    pub since: Instant,
    /// Which port it is to.
    pub port: usize,
    /// It.
    pub socket: Socket,
    /// Who wants it.
    pub source: SocketAddr,
    /// The replica that wants it, when it is one.
    pub from: Option<u32>,
}

impl AsFd for Waiting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A published port.
#[derive(Clone, Debug)]
pub(super) struct Port {
    /// The task's place in the configuration.
    pub(super) task: usize,
    pub(super) publish: Publish,
}

/// A guest, as the network knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guest {
    /// Its task's place in the configuration.
    pub task: usize,
    /// The task whose ports lead to it as well.
    pub joins: Option<usize>,
    /// Number of the replica in the cell.
    pub replica: u32,
    /// Which life of it.
    pub generation: u64,
}

/// A connection on its way to a guest.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) socket: Socket,
    /// The guest's port.
    pub(super) port: u16,
}

/// Where connections get into a guest.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) guest: Guest,
    is_open: AtomicBool,
    /// None when the guest is gone: what is sent before that is received.
    arrivals: Mutex<Option<Sender<Arrival>>>,
    /// Readable when somebody has arrived.
    pub(super) bell: EventFd,
    pub(super) traffic: Arc<Traffic>,
    pub(super) share: Arc<Share>,
}

/// How much of what a replica's lives get this one gets, in percent. There is more
/// than one during an upgrade only.
#[derive(Debug)]
pub struct Share(AtomicU32);

impl Share {
    /// Of everything.
    pub const ALL: u32 = 100;

    /// A share of so much.
    #[must_use]
    pub fn new(percent: u32) -> Self {
        Self(AtomicU32::new(percent))
    }

    /// Says how much it is from now on.
    pub fn set(&self, percent: u32) {
        self.0.store(percent, Ordering::Release);
    }

    /// How much it is.
    #[must_use]
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

impl Default for Share {
    fn default() -> Self {
        Self::new(Self::ALL)
    }
}

/// What is counted of a replica's connections, over all its generations.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Connections that it has.
    pub open: AtomicU32,
    /// Connections that it had.
    pub total: AtomicU64,
    /// Those that ended with an error.
    pub errors: AtomicU64,
    /// Bytes from the network.
    pub received: AtomicU64,
    /// Bytes to the network.
    pub sent: AtomicU64,
    /// Times between bytes that came and the first that went after them.
    pub answers: Times,
}

impl Traffic {
    /// Counts what another has counted, which counts no more.
    pub fn absorb(&self, other: &Self) {
        for (to, from) in [
            (&self.total, &other.total),
            (&self.errors, &other.errors),
            (&self.received, &other.received),
            (&self.sent, &other.sent),
        ] {
            to.fetch_add(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// What becomes of a connection.
#[derive(Debug)]
pub(super) enum Routed {
    /// Somebody has it.
    Taken,
    /// Nobody takes connections at the moment.
    Nobody(Waiting),
    /// The router says no.
    Denied,
}

impl Board {
    pub(super) fn new(router: Box<Router>, ports: Vec<Port>) -> Result<Self, NetError> {
        Ok(Self {
            router,
            ports,
            doors: Mutex::new(Vec::new()),
            opened: bell()?,
            is_shared: AtomicBool::new(false),
            waiting: unbounded(),
        })
    }

    pub(super) fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// Says whether another process has some of the guests.
    pub(super) fn share(&self, shares: bool) {
        self.is_shared.store(shares, Ordering::Release);
        self.knock();
    }

    pub(super) fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Acquire)
    }

    /// Whether a guest here takes connections to a published port.
    pub(super) fn leads_somewhere(&self, port: usize) -> bool {
        let Some(port) = self.ports.get(port) else {
            return false;
        };
        self.doors().iter().any(|it| it.takes(port))
    }

    pub(super) const fn opened(&self) -> &EventFd {
        &self.opened
    }

    /// Has a connection wait for somebody; false when too many do.
    pub(super) fn wait(&self, waiting: Waiting) -> bool {
        let has_room = self.waiting.0.len() < WAITING_MAX;
        if has_room {
            self.wait_on([waiting]);
        }
        has_room
    }

    /// Has those wait on that have waited elsewhere, however many they are.
    pub(super) fn wait_on(&self, waiting: impl IntoIterator<Item = Waiting>) {
        for it in waiting {
            // The board has the other end.
            let _ = self.waiting.0.send(it);
        }
        ring(&self.opened);
    }

    /// What is to wait with those that the acceptor has.
    pub(super) fn waiting(&self) -> impl Iterator<Item = Waiting> {
        self.waiting.1.try_iter()
    }

    /// Makes a door for a guest, through which nothing comes until it is opened.
    pub(super) fn door(
        &self,
        guest: Guest,
        traffic: Arc<Traffic>,
        share: Arc<Share>,
    ) -> Result<(Arc<Door>, Receiver<Arrival>), NetError> {
        let door = Arc::new(Door {
            guest,
            is_open: AtomicBool::new(false),
            arrivals: Mutex::new(None),
            bell: bell()?,
            traffic,
            share,
        });
        let arrived = self.put_back(&door);
        Ok((door, arrived))
    }

    /// Puts a door back that was taken away: with whatever has come through it before being
    /// gone, and closed.
    pub(super) fn put_back(&self, door: &Arc<Door>) -> Receiver<Arrival> {
        let (arrivals, arrived) = unbounded();
        door.is_open.store(false, Ordering::Release);
        *lock(&door.arrivals) = Some(arrivals);
        self.doors().push(Arc::clone(door));
        arrived
    }

    /// Lets connections through a door.
    pub(super) fn open(&self, door: &Door) {
        door.is_open.store(true, Ordering::Release);
        self.knock();
    }

    /// Says that who waits may find somebody now.
    pub fn knock(&self) {
        ring(&self.opened);
    }

    /// Takes a door away; nothing comes through it any more.
    pub(super) fn close(&self, door: &Arc<Door>) {
        self.doors().retain(|it| !Arc::ptr_eq(it, door));
        *lock(&door.arrivals) = None;
        if self.is_shared() {
            self.knock();
        }
    }

    /// Finds somebody for a connection to a published port.
    pub(super) fn route(&self, waiting: Waiting) -> Routed {
        let Some(port) = self.ports.get(waiting.port) else {
            return Routed::Denied;
        };
        let Waiting { source, from, .. } = waiting;
        let mut doors: Vec<(u32, Arc<Door>)> = self
            .doors()
            .iter()
            .filter(|it| it.takes(port))
            .map(|it| (it.traffic.open.load(Ordering::Relaxed), Arc::clone(it)))
            .filter(|(connections, _)| *connections < CONNECTIONS_MAX)
            .collect();
        if doors.is_empty() {
            return Routed::Nobody(waiting);
        }
        one_life_each(&mut doors);
        doors.sort_by_key(|(connections, door)| (*connections, door.guest.replica));
        doors.truncate(TARGETS_MAX);
        let target = |(connections, door): &(u32, Arc<Door>)| Target {
            replica: door.guest.replica,
            connections: *connections,
            generation: door.guest.generation,
        };
        let verdict = (self.router)(Connection {
            now: wharf_policy::now().as_nanos(),
            lot: getrandom::u64().unwrap_or(0),
            direction: if from.is_some() {
                Direction::Between
            } else {
                Direction::Inbound
            },
            from_replica: from,
            source: endpoint(source),
            destination: endpoint(port.publish.address),
            targets: doors.iter().map(target).collect(),
        });
        let Verdict::Target(place) = verdict else {
            return Routed::Denied;
        };
        let chosen = usize::try_from(place).ok().and_then(|at| doors.get(at));
        let Some((_, door)) = chosen else {
            return Routed::Denied;
        };
        let arrival = Arrival {
            socket: waiting.socket,
            port: port.publish.guest_port,
        };
        match door.pass(arrival) {
            Ok(()) => Routed::Taken,
            // It was there a moment ago.
            Err(Arrival { socket, .. }) => Routed::Nobody(Waiting { socket, ..waiting }),
        }
    }

    /// The published port at an address that a guest connects to, if it is one.
    pub(super) fn port_at(&self, to: SocketAddr) -> Option<usize> {
        self.ports.iter().position(|port| {
            let address = port.publish.address;
            let is_any = address.ip().is_unspecified() && to.ip().is_loopback();
            address.port() == to.port() && (address.ip() == to.ip() || is_any)
        })
    }

    /// Whether a guest may connect to the outside.
    pub(super) fn lets_out(&self, from: u32, to: SocketAddr) -> bool {
        let none = SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 0);
        let verdict = (self.router)(Connection {
            now: wharf_policy::now().as_nanos(),
            lot: getrandom::u64().unwrap_or(0),
            direction: Direction::Outbound,
            from_replica: Some(from),
            source: endpoint(none),
            destination: endpoint(to),
            targets: Vec::new(),
        });
        verdict == Verdict::Pass
    }

    fn doors(&self) -> MutexGuard<'_, Vec<Arc<Door>>> {
        lock(&self.doors)
    }
}

/// Leaves one life of each replica, by lot where there are two and as their shares say.
fn one_life_each(doors: &mut Vec<(u32, Arc<Door>)>) {
    doors.sort_by_key(|(_, door)| (door.guest.replica, door.guest.generation));
    doors.dedup_by(|later, kept| {
        let is_same = later.1.guest.replica == kept.1.guest.replica;
        if is_same {
            let all = later.1.share.get().saturating_add(kept.1.share.get());
            let lot = getrandom::u32().unwrap_or(0).checked_rem(all).unwrap_or(0);
            if lot < later.1.share.get() {
                std::mem::swap(later, kept);
            }
        }
        is_same
    });
}

impl Door {
    /// Whether connections to a port may come through.
    fn takes(&self, port: &Port) -> bool {
        let leads_here = self.guest.task == port.task || self.guest.joins == Some(port.task);
        leads_here && self.is_open.load(Ordering::Acquire) && self.share.get() > 0
    }

    /// Gives a connection to the guest. It counts from now on, so that the next one
    /// is not given to the same guest for want of news.
    fn pass(&self, arrival: Arrival) -> Result<(), Arrival> {
        let arrivals = lock(&self.arrivals);
        let Some(sender) = arrivals.as_ref() else {
            return Err(arrival);
        };
        self.traffic.open.fetch_add(1, Ordering::Relaxed);
        match sender.send(arrival) {
            Ok(()) => {
                ring(&self.bell);
                Ok(())
            }
            Err(returned) => {
                self.traffic.open.fetch_sub(1, Ordering::Relaxed);
                Err(returned.0)
            }
        }
    }
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board")
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

/// A thread that panicked while it held one of these left it whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers connections of the whole process, none twice.
pub(super) fn next_id() -> StreamId {
    StreamId(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The number that comes next: none from there on was ever given out.
pub(super) fn upcoming() -> StreamId {
    StreamId(NEXT.load(Ordering::Relaxed))
}

/// Has no number below this given out, which another process may have used.
pub(super) fn not_before(id: StreamId) {
    NEXT.fetch_max(id.0, Ordering::Relaxed);
}

static NEXT: AtomicU64 = AtomicU64::new(1);

pub(super) fn bell() -> Result<EventFd, NetError> {
    use nix::sys::eventfd::EfdFlags;
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    EventFd::from_flags(flags).map_err(refused("an eventfd"))
}

/// Makes it readable; it stays so until it is read.
pub(super) fn ring(bell: &EventFd) {
    // Full is as readable as it gets.
    let _ = bell.write(1);
}

fn endpoint(address: SocketAddr) -> Endpoint {
    let bits = match address.ip() {
        IpAddr::V4(it) => it.to_ipv6_mapped().to_bits(),
        IpAddr::V6(it) => it.to_bits(),
    };
    let [high, low] = [bits >> 64, bits & u128::from(u64::MAX)]
        .map(|half| u64::try_from(half).unwrap_or(u64::MAX));
    Endpoint {
        high,
        low,
        port: address.port(),
    }
}
