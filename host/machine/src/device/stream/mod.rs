//! Streams: the guest's end of TCP connections, as `wharf_abi::stream` has it.
//!
//! ```text
//!   transmit queue ──▶ packet ──▶ connection ──▶ network ── socket
//!   receive queue  ◀── packets that are owed ◀─┤
//!                  ◀── bytes, straight into the guest's buffer
//! ```
//!
//! Bytes go between socket and guest memory in one copy, made by the kernel. Only
//! what a socket does not take at once is kept here, and never more of it than the
//! connection's credit.

mod carried;
mod connection;
mod network;
mod saved;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;

use virtio_queue::Queue;
use wharf_abi::device::QUEUES_MAX;
use wharf_abi::stream::{
    CONNECT_PORT, DEVICE_TYPE, Endpoint, GUEST_CID, HEADER_LEN, HOST_CID, Header, Op, PAYLOAD_MAX,
    QUEUE_RECEIVE, QUEUE_TRANSMIT, RECEIVE_MIN, Refusal, TYPE_STREAM,
};
use zerocopy::{FromBytes, IntoBytes};

use super::chain::Chain;
use super::ring::{self, Budget, Receiving, give_back};
use super::user::UserMemory;
use super::{Broken, Terms};
use crate::memory::u64_of;
use crate::upgrade::Resting;
use connection::{Connection, Phase, Ports, ends, header};

pub(super) use carried::CarriedStreams;
pub(crate) use saved::{CONNECTIONS_MAX, StreamsState};

pub use network::{Close, Happening, Moved, Network, StreamId};

const QUEUE_SIZE: u16 = 256;

const HEADER: u64 = 44;
const _: () = assert!(HEADER_LEN == 44);

/// Resets for connections that do not exist, which wait for a receive buffer. A guest
/// that makes more of them than it reads gets no more.
const STRAYS_MAX: usize = 64;

/// Connections that the guest is asked for at a time: fewer than runtimes keep for who
/// accepts slowly.
const ASKED_MAX: usize = 64;

/// The host's ports for connections from outside begin here.
const FIRST_PORT: u32 = 1024;

/// The streams of a guest.
#[derive(Debug)]
pub struct Streams {
    network: Box<dyn Network>,
    is_open: bool,
    connections: HashMap<StreamId, Connection>,
    by_ports: HashMap<Ports, StreamId>,
    /// Connections that may have something to receive.
    readable: VecDeque<StreamId>,
    /// Connections that have packets to tell the guest.
    owing: VecDeque<StreamId>,
    strays: VecDeque<Header>,
    /// Connections that the guest is still to be asked for: it has enough to answer.
    unasked: VecDeque<(StreamId, Connection)>,
    /// How many it was asked for and has not answered.
    asked: usize,
    buffers: Receiving,
    happened: Vec<Happening>,
    next_port: u32,
}

/// What the driver is told of streams.
pub(super) fn terms() -> Terms {
    Terms {
        device_type: DEVICE_TYPE,
        features: 0,
        queue_count: 3,
        queue_size_max: QUEUE_SIZE,
        config: GUEST_CID.to_le_bytes().to_vec(),
    }
}

impl Streams {
    /// Streams to a network.
    #[must_use]
    pub fn new(network: Box<dyn Network>) -> Self {
        Self {
            network,
            is_open: false,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            readable: VecDeque::new(),
            owing: VecDeque::new(),
            strays: VecDeque::new(),
            unasked: VecDeque::new(),
            asked: 0,
            buffers: Receiving::new(RECEIVE_MIN.into()),
            happened: Vec::new(),
            next_port: FIRST_PORT,
        }
    }

    /// What becomes readable when something has happened.
    pub(super) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.network.fd()
    }

    /// Does what is to be done in all queues, as far as the budget goes; says whether
    /// there is more.
    ///
    /// # Errors
    ///
    /// The guest's fault, with the queue.
    pub(super) fn serve(
        &mut self,
        queues: &mut [Option<Queue>; QUEUES_MAX],
        user: UserMemory<'_>,
        budget: &mut Budget,
    ) -> Result<bool, (u16, Broken)> {
        let [receive, transmit, ..] = queues;
        if !self.is_open {
            self.is_open = true;
            self.network.open();
        }
        let mut more = false;
        if let Some(queue) = transmit {
            let packet = |chain: &_| Ok((0, self.packet(user, chain)?));
            more |= ring::drain(queue, user, budget, packet)
                .map_err(|broken| (QUEUE_TRANSMIT, broken))?;
        }
        more |= self.look();
        if let Some(queue) = receive {
            more |= self
                .receive(queue, user, budget)
                .map_err(|broken| (QUEUE_RECEIVE, broken))?;
        }
        Ok(more)
    }

    /// Takes what the guest has sent and gives it nothing, whatever there is for it.
    ///
    /// # Errors
    ///
    /// The guest's fault, with the queue.
    pub(super) fn transmit(
        &mut self,
        queues: &mut [Option<Queue>; QUEUES_MAX],
        user: UserMemory<'_>,
    ) -> Result<(), (u16, Broken)> {
        let [_, transmit, ..] = queues;
        let Some(queue) = transmit else {
            return Ok(());
        };
        // As much as a queue holds.
        let mut budget = Budget::LAST;
        let packet = |chain: &_| Ok((0, self.packet(user, chain)?));
        ring::drain(queue, user, &mut budget, packet)
            .map(drop)
            .map_err(|broken| (QUEUE_TRANSMIT, broken))
    }

    /// One packet of the guest's; returns the bytes that it carries.
    fn packet(&mut self, user: UserMemory<'_>, chain: &Chain) -> Result<u64, Broken> {
        let Some(len) = chain.readable_len().checked_sub(HEADER) else {
            return Err(Broken::NoHeader);
        };
        let mut bytes = [0; HEADER_LEN];
        chain.readable(user, 0, HEADER)?.copy_out(&mut bytes);
        let Ok(packet) = Header::read_from_bytes(&bytes) else {
            return Err(Broken::NoHeader);
        };
        let is_ours = (packet.src_cid, packet.dst_cid) == (GUEST_CID, HOST_CID);
        let fits = len == u64::from(packet.len) && packet.len <= PAYLOAD_MAX;
        if !is_ours || !fits || packet.socket_type != TYPE_STREAM {
            return Err(Broken::Packet);
        }
        let ports = Ports {
            host: packet.dst_port,
            guest: packet.src_port,
        };
        let op = Op::from_raw(packet.op);
        let Some(id) = self.by_ports.get(&ports).copied() else {
            match op {
                Some(Op::Request) if ports.host == CONNECT_PORT => {
                    self.connect(user, chain, &packet, ports)?;
                }
                Some(Op::Reset) => {}
                _ => self.stray(ports, 0),
            }
            return Ok(len);
        };
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(len);
        };
        connection.flow.heard(packet.buf_alloc, packet.fwd_cnt);
        if connection.is_stalled && connection.flow.room() > 0 {
            connection.is_stalled = false;
            self.may_be_readable(id);
        }
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(len);
        };
        match (op, connection.phase) {
            (Some(Op::Reset), _) => self.forget(id, Close::Reset),
            // The reset that it is about to get says all.
            (_, Phase::Gone) => {}
            (Some(Op::Response), Phase::Asked) if !connection.owed.request => {
                connection.phase = Phase::Open;
                self.asked = self.asked.saturating_sub(1);
                self.may_be_readable(id);
                self.push(id);
                self.ask_more();
            }
            (Some(Op::Data), Phase::Open) if !connection.flow.guest_ended().send => {
                self.data(id, user, chain, packet.len)?;
            }
            (Some(Op::Shutdown), Phase::Open) => {
                connection.flow.guest_ends(ends(packet.flags));
                self.push(id);
            }
            (Some(Op::CreditRequest), Phase::Open) => {
                connection.owed.credit = true;
                self.owe(id);
            }
            (Some(Op::CreditUpdate), Phase::Open) => {}
            // Out of place: nothing good comes of it.
            _ => self.give_up(id, Close::Reset, 0),
        }
        Ok(len)
    }

    fn connect(
        &mut self,
        user: UserMemory<'_>,
        chain: &Chain,
        packet: &Header,
        ports: Ports,
    ) -> Result<(), Broken> {
        let wanted = u64_of(size_of::<Endpoint>());
        let mut bytes = [0; size_of::<Endpoint>()];
        chain.readable(user, HEADER, wanted)?.copy_out(&mut bytes);
        let to = Endpoint::read_from_bytes(&bytes)
            .ok()
            .filter(|_| u64::from(packet.len) == wanted)
            .and_then(destination);
        let asked = to.map_or(Err(Refusal::Invalid), |to| self.network.connect(to));
        match asked {
            Ok(id) => {
                let mut connection = Connection::new(ports, Phase::Connecting);
                connection.flow.heard(packet.buf_alloc, packet.fwd_cnt);
                self.add(id, connection);
            }
            Err(refusal) => self.stray(ports, refusal.raw()),
        }
        Ok(())
    }

    /// Bytes from the guest: to the network, or kept until it takes them.
    fn data(
        &mut self,
        id: StreamId,
        user: UserMemory<'_>,
        chain: &Chain,
        len: u32,
    ) -> Result<(), Broken> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        connection
            .flow
            .received(len)
            .map_err(|_| Broken::Overdrawn)?;
        let bytes = chain.readable(user, HEADER, u64::from(len))?;
        let mut sent = 0;
        if !connection.has_kept() {
            match self.network.send(id, &bytes) {
                Ok(count) => sent = u32::try_from(count).unwrap_or(len).min(len),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.give_up(id, Close::Reset, 0);
                    return Ok(());
                }
            }
            connection.flow.forwarded(sent);
        }
        let rest = len.saturating_sub(sent);
        if rest > 0 {
            let mut room = vec![0; usize::try_from(rest).unwrap_or(0)];
            bytes
                .part(u64::from(sent), u64::from(rest))
                .copy_out(&mut room);
            connection.keep(&room);
        }
        if connection.flow.has_news() {
            connection.owed.credit = true;
            self.owe(id);
        }
        Ok(())
    }

    /// Takes in what happened on the network; says whether there may be more.
    fn look(&mut self) -> bool {
        let mut happened = std::mem::take(&mut self.happened);
        let more = !self.network.poll(&mut happened);
        for it in happened.drain(..) {
            match it {
                Happening::Incoming { id, port } => {
                    let ports = self.free_ports(port);
                    self.ask(id, Connection::new(ports, Phase::Asked));
                }
                Happening::Connected(id) => {
                    if let Some(connection) = self.connections.get_mut(&id)
                        && connection.phase == Phase::Connecting
                    {
                        connection.phase = Phase::Open;
                        connection.owed.response = true;
                        self.owe(id);
                    }
                }
                Happening::Failed(id, refusal) => self.give_up(id, Close::Reset, refusal.raw()),
                Happening::Readable { id, ends } => {
                    if let Some(connection) = self.connections.get_mut(&id) {
                        connection.ends |= ends;
                        self.may_be_readable(id);
                    }
                    // It is looked at when the guest has answered; but an end is told
                    // once.
                    for (_, unasked) in self.unasked.iter_mut().filter(|(it, _)| *it == id) {
                        unasked.ends |= ends;
                    }
                }
                Happening::Writable(id) => {
                    if self.connections.get(&id).is_some_and(Connection::has_kept) {
                        self.push(id);
                    }
                }
            }
        }
        self.happened = happened;
        more
    }

    /// Gives the guest what there is for it, as long as it has buffers; says whether
    /// there is more that would fit.
    fn receive(
        &mut self,
        queue: &mut Queue,
        user: UserMemory<'_>,
        budget: &mut Budget,
    ) -> Result<bool, Broken> {
        while !(self.strays.is_empty() && self.owing.is_empty() && self.readable.is_empty()) {
            if budget.is_spent() {
                return Ok(true);
            }
            let Some(chain) = self.buffers.buffer(queue, user)? else {
                return Ok(false);
            };
            match self.fill(&chain, user)? {
                Some(carried) => {
                    let written = HEADER.saturating_add(carried);
                    let written = u32::try_from(written).unwrap_or(u32::MAX);
                    give_back(queue, user, &chain, written)?;
                    budget.spend(carried);
                }
                None => self.buffers.keep(chain),
            }
        }
        Ok(false)
    }

    /// Writes the next packet into a buffer, if there is one after all; returns the
    /// bytes that it carries.
    fn fill(&mut self, chain: &Chain, user: UserMemory<'_>) -> Result<Option<u64>, Broken> {
        if let Some(stray) = self.strays.pop_front() {
            return write(chain, user, &stray).map(|()| Some(0));
        }
        while let Some(id) = self.owing.front().copied() {
            let Some(connection) = self.connections.get_mut(&id) else {
                self.owing.pop_front();
                continue;
            };
            let Some((packet, is_last)) = connection.pay() else {
                connection.is_owing = false;
                self.owing.pop_front();
                continue;
            };
            if is_last {
                self.remove(id);
            } else if connection.is_over() {
                self.give_up(id, Close::Orderly, 0);
            }
            if packet.op == Op::Request.raw() {
                let client = Endpoint::from(self.network.client(id));
                return write_request(chain, user, &packet, &client).map(Some);
            }
            return write(chain, user, &packet).map(|()| Some(0));
        }
        while let Some(id) = self.readable.pop_front() {
            if let Some(carried) = self.deliver(id, chain, user)? {
                return Ok(Some(carried));
            }
        }
        Ok(None)
    }

    /// Takes away connections at rest, those that are.
    pub(super) fn give(&mut self, resting: Vec<Resting>) -> Vec<Moved> {
        // Who arrived and was not seen yet goes as well, and nobody else arrives.
        self.network.shut();
        while self.look() {}
        let mut moved = Vec::new();
        for Resting {
            host_port,
            guest_port,
            unread,
        } in resting
        {
            let ports = Ports {
                host: host_port,
                guest: guest_port,
            };
            let known = self.by_ports.get(&ports).copied();
            let movable = known.filter(|id| {
                let connection = self.connections.get(id);
                host_port != CONNECT_PORT && connection.is_some_and(Connection::is_movable)
            });
            if let Some(id) = movable {
                moved.extend(self.uproot(id, unread));
            }
        }
        // Those that the guest has not answered yet have nothing to rest from.
        let asked = self.connections.iter();
        let asked = asked.filter(|(_, it)| it.phase == Phase::Asked);
        let asked: Vec<StreamId> = asked.map(|(id, _)| *id).collect();
        for id in asked {
            moved.extend(self.uproot(id, Vec::new()));
        }
        self.asked = 0;
        for (id, connection) in std::mem::take(&mut self.unasked) {
            moved.extend(uprooted(self.network.as_mut(), id, connection, Vec::new()));
        }
        moved
    }

    fn uproot(&mut self, id: StreamId, unread: Vec<u8>) -> Option<Moved> {
        let connection = self.remove(id)?;
        uprooted(self.network.as_mut(), id, connection, unread)
    }

    /// Has the guest asked for connections that another one had.
    pub(super) fn take(&mut self, moved: Vec<Moved>) {
        for Moved {
            socket,
            port,
            unread,
            unsent,
        } in moved
        {
            // One that there is no room for is cut off, and counted so.
            if let Some(id) = self.network.take(socket) {
                let connection = Connection::new(self.free_ports(port), Phase::Asked);
                self.ask(id, connection.with_legacy(unread, unsent));
            }
        }
    }

    /// Asks the guest whether it wants a connection, now or when it has answered
    /// others: its runtime keeps a bounded number that nobody has accepted.
    fn ask(&mut self, id: StreamId, mut connection: Connection) {
        if self.asked >= ASKED_MAX {
            self.unasked.push_back((id, connection));
            return;
        }
        self.asked = self.asked.saturating_add(1);
        connection.owed.request = true;
        self.add(id, connection);
        self.owe(id);
    }

    fn ask_more(&mut self) {
        while self.asked < ASKED_MAX
            && let Some((id, connection)) = self.unasked.pop_front()
        {
            self.ask(id, connection);
        }
    }

    /// Receives from one connection into a buffer.
    fn deliver(
        &mut self,
        id: StreamId,
        chain: &Chain,
        user: UserMemory<'_>,
    ) -> Result<Option<u64>, Broken> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(None);
        };
        connection.is_readable = false;
        if !connection.can_deliver() {
            // Looked at again when it is open, or the guest has room.
            connection.is_stalled = true;
            return Ok(None);
        }
        let room = chain.writable_len().saturating_sub(HEADER);
        let room = room
            .min(u64::from(connection.flow.room()))
            .min(u64::from(PAYLOAD_MAX));
        let into = chain.writable(user, HEADER, room)?;
        if connection.has_unread() {
            let unread = connection.take_unread(room);
            into.copy_in(&unread);
            let count = u32::try_from(unread.len()).unwrap_or(u32::MAX);
            connection.flow.sent(count);
            let packet = connection.header(Op::Data, count, 0);
            connection.is_readable = true;
            self.readable.push_back(id);
            write(chain, user, &packet)?;
            return Ok(Some(u64::from(count)));
        }
        match self.network.receive(id, &into) {
            Ok(0) => {
                connection.owed.shutdown = true;
                self.owe(id);
                Ok(None)
            }
            Ok(count) => {
                let count = u32::try_from(u64_of(count).min(room)).unwrap_or(u32::MAX);
                connection.flow.sent(count);
                let packet = connection.header(Op::Data, count, 0);
                // Less than there was room for is all that there was (epoll(7)).
                if connection.ends || u64::from(count) == room {
                    connection.is_readable = true;
                    self.readable.push_back(id);
                }
                write(chain, user, &packet)?;
                Ok(Some(u64::from(count)))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(_) => {
                self.give_up(id, Close::Reset, 0);
                Ok(None)
            }
        }
    }

    /// Has a connection looked at for something to receive.
    fn may_be_readable(&mut self, id: StreamId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.is_readable
        {
            connection.is_readable = true;
            self.readable.push_back(id);
        }
    }

    /// Has the packets that a connection owes sent.
    fn owe(&mut self, id: StreamId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.is_owing
        {
            connection.is_owing = true;
            self.owing.push_back(id);
        }
    }

    /// Sends what was kept back, and does what follows from that.
    fn push(&mut self, id: StreamId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.push(id, self.network.as_mut()).is_err() {
            self.give_up(id, Close::Reset, 0);
        } else if connection.is_over() {
            self.give_up(id, Close::Orderly, 0);
        } else if connection.flow.has_news() {
            connection.owed.credit = true;
            self.owe(id);
        }
    }

    /// Lets the network's side go and tells the guest.
    fn give_up(&mut self, id: StreamId, how: Close, flags: u32) {
        if let Some(connection) = self.connections.get_mut(&id) {
            let was_asked = connection.phase == Phase::Asked;
            connection.give_up(id, self.network.as_mut(), how, flags);
            self.owe(id);
            if was_asked {
                self.asked = self.asked.saturating_sub(1);
                self.ask_more();
            }
        }
    }

    /// Lets both sides go: the guest knows.
    fn forget(&mut self, id: StreamId, how: Close) {
        if let Some(connection) = self.remove(id)
            && connection.phase != Phase::Gone
        {
            self.network.close(id, how);
        }
        self.ask_more();
    }

    fn add(&mut self, id: StreamId, connection: Connection) {
        self.by_ports.insert(connection.ports, id);
        self.connections.insert(id, connection);
    }

    fn remove(&mut self, id: StreamId) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        self.by_ports.remove(&connection.ports);
        if connection.phase == Phase::Asked {
            self.asked = self.asked.saturating_sub(1);
        }
        Some(connection)
    }

    /// Refuses what there is no connection for.
    fn stray(&mut self, ports: Ports, flags: u32) {
        if self.strays.len() < STRAYS_MAX {
            self.strays.push_back(header(ports, Op::Reset, flags));
        }
    }

    /// Ports for a new connection to a port of the guest's. There are far fewer
    /// connections than ports.
    fn free_ports(&mut self, guest: u16) -> Ports {
        loop {
            let ports = Ports {
                host: self.next_port,
                guest: u32::from(guest),
            };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.by_ports.contains_key(&ports) {
                return ports;
            }
        }
    }
}

fn write(chain: &Chain, user: UserMemory<'_>, packet: &Header) -> Result<(), Broken> {
    chain.writable(user, 0, HEADER)?.copy_in(packet.as_bytes());
    Ok(())
}

fn uprooted(
    network: &mut dyn Network,
    id: StreamId,
    connection: Connection,
    unread: Vec<u8>,
) -> Option<Moved> {
    let port = u16::try_from(connection.ports.guest).ok()?;
    let socket = network.give(id)?;
    let (unread, unsent) = connection.into_legacy(unread);
    Some(Moved {
        socket,
        port,
        unread,
        unsent,
    })
}

/// Writes a request, with who makes it; returns the bytes that it carries.
fn write_request(
    chain: &Chain,
    user: UserMemory<'_>,
    packet: &Header,
    client: &Endpoint,
) -> Result<u64, Broken> {
    let client = client.as_bytes();
    let len = u64_of(client.len());
    let packet = Header {
        len: u32::try_from(len).unwrap_or(0),
        ..*packet
    };
    chain.writable(user, HEADER, len)?.copy_in(client);
    write(chain, user, &packet).map(|()| len)
}

fn destination(it: Endpoint) -> Option<SocketAddr> {
    (it.port != 0 && it.reserved == 0).then(|| it.socket_addr())
}
