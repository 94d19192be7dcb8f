//! All connections and listeners of the device, and which packet is for whom.
//!
//! Nothing here knows rings: packets come in by [`Table::hear`] and go out by
//! [`Table::output`].

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use core::task::{Context, Poll, Waker};

use slab::Slab;
use wharf_abi::stream::{CONNECT_PORT, Endpoint, GUEST_CID, HOST_CID, Header, Op, TYPE_STREAM};
use wharf_abi::upgrade::Rest;
use zerocopy::{FromBytes, IntoBytes};

use super::Error;
use super::connection::{BOTH, Connection, Key, Owner, Phase, reply};
use super::credit::Credit;
use super::output::Output;
use crate::upgrade;

/// Most connections of a listener that nobody has accepted. More are reset.
pub(super) const BACKLOG_MAX: usize = 128;

/// The first of the ports that connections to the outside are made from. Listeners
/// have those below, and four billion come after it: none is used again while a late
/// packet may still be meant for its last connection.
const FIRST_OWN_PORT: u32 = 1 << 16;

#[derive(Debug)]
pub(super) struct Table {
    /// Bytes that are kept for each connection's reader at most.
    window: u32,
    connections: Slab<Connection>,
    /// Those that have not ended.
    by_key: BTreeMap<Key, usize>,
    listeners: BTreeMap<u16, Listener>,
    next_port: u32,
    output: Output,
    /// Whether nobody is to read.
    is_frozen: bool,
}

#[derive(Debug, Default)]
struct Listener {
    backlog: VecDeque<usize>,
    waiting: Vec<Waker>,
}

impl Table {
    pub(super) fn new(window: u32) -> Self {
        Self {
            window,
            connections: Slab::new(),
            by_key: BTreeMap::new(),
            listeners: BTreeMap::new(),
            next_port: FIRST_OWN_PORT,
            output: Output::default(),
            is_frozen: false,
        }
    }

    /// What goes out. Settle first: what was written since is not there yet.
    pub(super) fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Begins to listen.
    pub(super) fn bind(&mut self, port: u16) -> Result<(), Error> {
        if port == 0 {
            return Err(Error::InvalidPort);
        }
        if self.listeners.contains_key(&port) {
            return Err(Error::AddrInUse);
        }
        self.listeners.insert(port, Listener::default());
        Ok(())
    }

    /// Stops listening, and resets who has not been accepted.
    pub(super) fn unbind(&mut self, port: u16) {
        let listener = self.listeners.remove(&port);
        for slot in listener.into_iter().flat_map(|it| it.backlog) {
            self.disown(slot, Connection::abort);
        }
    }

    /// Takes a connection that came in.
    pub(super) fn poll_accept(
        &mut self,
        port: u16,
        context: &Context<'_>,
    ) -> Poll<Result<usize, Error>> {
        let Some(listener) = self.listeners.get_mut(&port) else {
            return Poll::Ready(Err(Error::InvalidPort));
        };
        while let Some(slot) = listener.backlog.pop_front() {
            if let Some(connection) = self.connections.get_mut(slot) {
                connection.owner = Owner::Stream;
                return Poll::Ready(Ok(slot));
            }
        }
        upgrade::accepts();
        let waker = context.waker();
        if !listener.waiting.iter().any(|other| other.will_wake(waker)) {
            listener.waiting.push(waker.clone());
        }
        Poll::Pending
    }

    /// Asks for a connection to the outside.
    pub(super) fn connect(&mut self, to: SocketAddr) -> usize {
        let mut key = Key {
            local: self.next_port,
            peer: CONNECT_PORT,
        };
        while self.by_key.contains_key(&key) {
            key.local = port_after(key.local);
        }
        self.next_port = port_after(key.local);
        let slot = self.insert(key, to, Owner::Stream, Phase::Connecting);
        self.with(slot, |connection, output| {
            connection.request(Endpoint::from(to).as_bytes(), output);
        });
        slot
    }

    /// Who is at the other end of a stream.
    pub(super) fn peer(&self, slot: usize) -> SocketAddr {
        self.connections.get(slot).map_or(NOBODY, |it| it.peer)
    }

    /// Waits for the answer to [`connect`](Self::connect).
    pub(super) fn poll_connected(
        &mut self,
        slot: usize,
        context: &Context<'_>,
    ) -> Poll<Result<(), Error>> {
        self.with(slot, |connection, _| connection.poll_connected(context))
            .unwrap_or(Poll::Ready(Err(GONE)))
    }

    pub(super) fn poll_read(
        &mut self,
        slot: usize,
        buffer: &mut [u8],
        context: &Context<'_>,
    ) -> Poll<Result<usize, Error>> {
        let is_frozen = self.is_frozen;
        self.with(slot, |connection, output| {
            if is_frozen && connection.can_freeze() {
                return connection.poll_nothing(context);
            }
            connection.poll_read(slot, buffer, context, output)
        })
        .unwrap_or(Poll::Ready(Err(GONE)))
    }

    pub(super) fn poll_write(
        &mut self,
        slot: usize,
        bytes: &[u8],
        context: &Context<'_>,
    ) -> Poll<Result<usize, Error>> {
        self.with(slot, |connection, output| {
            connection.poll_write(slot, bytes, context, output)
        })
        .unwrap_or(Poll::Ready(Err(GONE)))
    }

    /// Says that a stream sends, or receives, no more.
    pub(super) fn shutdown(&mut self, slot: usize, directions: u32) {
        self.with(slot, |connection, output| {
            connection.shutdown(directions, output);
        });
    }

    /// Ends a stream at once.
    pub(super) fn abort(&mut self, slot: usize) {
        self.with(slot, Connection::abort);
    }

    /// Lets go of a stream: what was written still goes out.
    pub(super) fn close(&mut self, slot: usize) {
        self.disown(slot, |connection, output| match connection.phase {
            Phase::Connecting => connection.abort(output),
            Phase::Open | Phase::Ended(_) => connection.shutdown(BOTH, output),
        });
    }

    /// Takes a packet from the host.
    pub(super) fn hear(&mut self, header: &Header, payload: &[u8]) {
        let (from, to) = (header.src_cid, header.dst_cid);
        let Some(op) = Op::from_raw(header.op) else {
            return;
        };
        if (from, to, header.socket_type) != (HOST_CID, GUEST_CID, TYPE_STREAM) {
            return;
        }
        let key = Key {
            local: header.dst_port,
            peer: header.src_port,
        };
        if op == Op::Request {
            self.requested(key, header, payload);
            return;
        }
        // What is for nobody crossed a reset on its way. To answer that could end
        // another connection, for which the host uses the port again.
        if let Some(&slot) = self.by_key.get(&key) {
            self.with(slot, |connection, output| {
                connection.hear(slot, (op, header), payload, output);
            });
        }
    }

    /// Turns into packets what has gathered since the last time.
    pub(super) fn settle(&mut self) {
        while let Some(slot) = self.output.next_marked() {
            self.with(slot, Connection::settle);
        }
    }

    /// Has no connection read from any more, but those that are in the middle of more
    /// than can be read again.
    pub(super) fn freeze(&mut self) {
        self.is_frozen = true;
    }

    /// Has all of them go on.
    pub(super) fn thaw(&mut self) {
        self.is_frozen = false;
        for (_, connection) in &mut self.connections {
            connection.wake();
        }
    }

    /// Every connection from outside, with what its next reader is to read; none when
    /// one of them is in the middle of something.
    pub(super) fn resting(&mut self) -> Option<Vec<(Rest, Vec<u8>)>> {
        if !self.output.is_empty() {
            return None;
        }
        let mut resting = Vec::new();
        for (_, connection) in &self.connections {
            if connection.key.peer == CONNECT_PORT || !connection.goes_on() {
                continue;
            }
            resting.push(connection.resting()?);
        }
        Some(resting)
    }

    /// Number of connections, with those that nobody owns any more.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    fn requested(&mut self, key: Key, header: &Header, payload: &[u8]) {
        if let Some(&old) = self.by_key.get(&key) {
            // The host would not use a port again that it has not done with.
            let reset = Header {
                op: Op::Reset.raw(),
                ..*header
            };
            self.with(old, |connection, output| {
                connection.hear(old, (Op::Reset, &reset), &[], output);
            });
        }
        let listener = u16::try_from(key.local)
            .ok()
            .and_then(|port| self.listeners.get_mut(&port))
            .filter(|listener| listener.backlog.len() < BACKLOG_MAX);
        let Some(listener) = listener else {
            self.output.say(&reply(key, Op::Reset), &[]);
            return;
        };
        let slot = self.connections.vacant_key();
        listener.backlog.push_back(slot);
        listener.waiting.drain(..).for_each(Waker::wake);
        let client = Endpoint::read_from_prefix(payload);
        let client = client.map_or(NOBODY, |(client, _)| client.socket_addr());
        self.insert(key, client, Owner::Backlog, Phase::Open);
        self.with(slot, |connection, output| {
            connection.hear(slot, (Op::Request, header), &[], output);
            connection.say(Op::Response, 0, output);
        });
    }

    fn insert(&mut self, key: Key, peer: SocketAddr, owner: Owner, phase: Phase) -> usize {
        let credit = Credit::new(self.window);
        let connection = Connection::new(key, peer, owner, phase, credit);
        let slot = self.connections.insert(connection);
        self.by_key.insert(key, slot);
        slot
    }

    /// Does something with a connection, and lets go of it if that was its end.
    fn with<T>(
        &mut self,
        slot: usize,
        action: impl FnOnce(&mut Connection, &mut Output) -> T,
    ) -> Option<T> {
        let connection = self.connections.get_mut(slot)?;
        let result = action(connection, &mut self.output);
        if let Phase::Ended(_) = connection.phase {
            let (key, owner) = (connection.key, connection.owner);
            let is_wanted = match owner {
                Owner::Stream => true,
                Owner::Backlog => connection.is_worth_accepting(),
                Owner::Nobody => false,
            };
            if self.by_key.get(&key) == Some(&slot) {
                self.by_key.remove(&key);
            }
            if !is_wanted {
                self.connections.try_remove(slot);
                self.forget(key.local, slot);
            }
        }
        Some(result)
    }

    /// Takes a slot out of a backlog before something else is there.
    fn forget(&mut self, port: u32, slot: usize) {
        let port = u16::try_from(port).ok();
        if let Some(listener) = port.and_then(|port| self.listeners.get_mut(&port)) {
            listener.backlog.retain(|&other| other != slot);
        }
    }

    fn disown(&mut self, slot: usize, last: impl FnOnce(&mut Connection, &mut Output)) {
        self.with(slot, |connection, output| {
            connection.owner = Owner::Nobody;
            last(connection, output);
        });
    }
}

/// Whose address is not known.
const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

/// What a stream without a connection hears, which there is none of.
const GONE: Error = Error::ConnectionReset;

fn port_after(port: u32) -> u32 {
    port.checked_add(1).unwrap_or(FIRST_OWN_PORT)
}
