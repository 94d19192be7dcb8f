//! Streams that go on in another process, each where it is: with what was sent and not
//! taken, and what is still to be said.

use std::collections::HashMap;
use std::io;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wharf_abi::stream::Header;
use wharf_model::stream::Flow;
use zerocopy::{FromBytes, IntoBytes};

use super::connection::{Connection, Owed, Phase, Ports};
use super::{FIRST_PORT, STRAYS_MAX, StreamId, Streams};
use crate::handover::{BytesRef, CarryError, Luggage};

/// The streams of a guest.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct CarriedStreams {
    is_open: bool,
    connections: Vec<CarriedConnection>,
    readable: Vec<StreamId>,
    owing: Vec<StreamId>,
    /// Resets for what does not exist, one behind the other.
    strays: BytesRef,
    unasked: Vec<CarriedConnection>,
    next_port: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct CarriedConnection {
    id: StreamId,
    host_port: u32,
    guest_port: u32,
    phase: Phase,
    flow: Flow,
    owed: Owed,
    kept: BytesRef,
    unsent: BytesRef,
    unread: BytesRef,
    is_readable: bool,
    is_stalled: bool,
    is_owing: bool,
    ends: bool,
    has_ended_sending: bool,
}

impl Streams {
    /// Whether it has taken a buffer out that it has not used.
    pub(in super::super) const fn has_spare(&self) -> bool {
        self.buffers.is_waiting()
    }

    /// Describes itself and its network, to which nobody comes any more.
    ///
    /// # Errors
    ///
    /// When a socket cannot be passed on.
    pub(in super::super) fn carry(
        &mut self,
        luggage: &mut Luggage,
    ) -> io::Result<(CarriedStreams, Value)> {
        // Who arrived and was not seen yet goes as well.
        self.network.shut();
        while self.look() {}
        let mut strays = Vec::new();
        for stray in &self.strays {
            strays.extend(stray.as_bytes());
        }
        let connections = self.connections.iter();
        let unasked = self.unasked.iter().map(|(id, it)| (id, it));
        let state = CarriedStreams {
            is_open: self.is_open,
            connections: connections
                .map(|(id, it)| CarriedConnection::of(*id, it, luggage))
                .collect(),
            readable: self.readable.iter().copied().collect(),
            owing: self.owing.iter().copied().collect(),
            strays: luggage.put_bytes(&strays),
            unasked: unasked
                .map(|(id, it)| CarriedConnection::of(*id, it, luggage))
                .collect(),
            next_port: self.next_port,
        };
        Ok((state, self.network.carry(luggage)?))
    }

    /// Goes on here: it has come, or nobody took it.
    pub(in super::super) fn resume(&mut self) {
        self.network.resume(self.is_open);
    }

    /// Forgets all connections without a word to anybody.
    pub(in super::super) fn let_go(&mut self) {
        self.network.let_go();
        self.connections = HashMap::new();
        self.by_ports = HashMap::new();
        self.unasked.clear();
    }

    /// Goes on where another was, whose connections the network has, once it is
    /// [resumed](Self::resume).
    ///
    /// # Errors
    ///
    /// When what is said of them does not add up.
    pub(in super::super) fn carry_on(
        &mut self,
        carried: &CarriedStreams,
        luggage: &Luggage,
    ) -> Result<(), CarryError> {
        for it in &carried.connections {
            let connection = it.connection(luggage)?;
            if connection.phase == Phase::Asked {
                self.asked = self.asked.saturating_add(1);
            }
            let (ports, id) = (connection.ports, it.id);
            if self.connections.insert(id, connection).is_some()
                || self.by_ports.insert(ports, id).is_some()
            {
                return Err(CarryError::Malformed("a connection is there twice"));
            }
        }
        for it in &carried.unasked {
            self.unasked.push_back((it.id, it.connection(luggage)?));
        }
        let headers = luggage
            .bytes(carried.strays)?
            .chunks_exact(size_of::<Header>());
        let strays = headers.filter_map(|it| Header::read_from_bytes(it).ok());
        self.strays = strays.take(STRAYS_MAX).collect();
        self.readable = carried.readable.iter().copied().collect();
        self.owing = carried.owing.iter().copied().collect();
        self.next_port = carried.next_port.max(FIRST_PORT);
        self.is_open = carried.is_open;
        Ok(())
    }
}

impl CarriedConnection {
    fn of(id: StreamId, it: &Connection, luggage: &mut Luggage) -> Self {
        let mut bytes = |bytes: &std::collections::VecDeque<u8>| {
            let (first, second) = bytes.as_slices();
            luggage.put_pieces(&[first, second])
        };
        Self {
            id,
            host_port: it.ports.host,
            guest_port: it.ports.guest,
            phase: it.phase,
            flow: it.flow.clone(),
            owed: it.owed,
            kept: bytes(&it.kept),
            unsent: bytes(&it.unsent),
            unread: bytes(&it.unread),
            is_readable: it.is_readable,
            is_stalled: it.is_stalled,
            is_owing: it.is_owing,
            ends: it.ends,
            has_ended_sending: it.has_ended_sending,
        }
    }

    fn connection(&self, luggage: &Luggage) -> Result<Connection, CarryError> {
        let bytes = |it| luggage.bytes(it).map(|it| it.to_vec().into());
        Ok(Connection {
            ports: Ports {
                host: self.host_port,
                guest: self.guest_port,
            },
            phase: self.phase,
            flow: self.flow.clone(),
            owed: self.owed,
            kept: bytes(self.kept)?,
            unsent: bytes(self.unsent)?,
            unread: bytes(self.unread)?,
            is_readable: self.is_readable,
            is_stalled: self.is_stalled,
            is_owing: self.is_owing,
            ends: self.ends,
            has_ended_sending: self.has_ended_sending,
        })
    }
}
