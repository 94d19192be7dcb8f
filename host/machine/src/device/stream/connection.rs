//! One connection of a guest's, and what is still to be said of it.

use std::collections::VecDeque;
use std::io;

use serde::{Deserialize, Serialize};
use wharf_abi::stream::{
    GUEST_CID, HOST_CID, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use wharf_model::stream::{Ends, Flow};

use super::network::{Close, Network, StreamId};

/// The two ports that name a connection in packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    /// The guest has been asked, or is about to be.
    Asked,
    /// The guest has asked, and the network is trying.
    Connecting,
    /// Bytes go both ways.
    Open,
    /// The network is gone; the guest has to be told.
    Gone,
}

/// Packets that wait for a receive buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owed {
    pub(super) request: bool,
    pub(super) response: bool,
    pub(super) shutdown: bool,
    pub(super) credit: bool,
    /// With its flags.
    pub(super) reset: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) ports: Ports,
    pub(super) phase: Phase,
    pub(super) flow: Flow,
    pub(super) owed: Owed,
    /// What the guest sent and the network did not take yet: at most the host's
    /// credit.
    pub(super) kept: VecDeque<u8>,
    /// What the guest before sent and the network did not take yet: it goes first.
    pub(super) unsent: VecDeque<u8>,
    /// What came for the guest before and was not read: it goes first, too.
    pub(super) unread: VecDeque<u8>,
    /// Whether it is in the list of those that may have something to receive.
    pub(super) is_readable: bool,
    /// Whether there may be something to receive, and the guest had no room for it.
    pub(super) is_stalled: bool,
    /// Whether it is in the list of those that owe packets.
    pub(super) is_owing: bool,
    /// Whether all that is still to be received is there.
    pub(super) ends: bool,
    pub(super) has_ended_sending: bool,
}

impl Connection {
    pub(super) fn new(ports: Ports, phase: Phase) -> Self {
        Self {
            ports,
            phase,
            flow: Flow::default(),
            owed: Owed::default(),
            kept: VecDeque::new(),
            unsent: VecDeque::new(),
            unread: VecDeque::new(),
            is_readable: false,
            is_stalled: false,
            is_owing: false,
            ends: false,
            has_ended_sending: false,
        }
    }

    /// A packet of this connection, from the host.
    pub(super) fn header(&mut self, op: Op, len: u32, flags: u32) -> Header {
        let credit = self.flow.tell();
        Header {
            len,
            buf_alloc: credit.alloc,
            fwd_cnt: credit.forwarded,
            ..header(self.ports, op, flags)
        }
    }

    /// The next packet that is owed, and whether the connection is over with it.
    pub(super) fn pay(&mut self) -> Option<(Header, bool)> {
        let owed = &mut self.owed;
        if let Some(flags) = owed.reset {
            return Some((self.header(Op::Reset, 0, flags), true));
        }
        let (op, flags) = if std::mem::take(&mut owed.request) {
            (Op::Request, 0)
        } else if std::mem::take(&mut owed.response) {
            (Op::Response, 0)
        } else if std::mem::take(&mut owed.shutdown) {
            self.flow.network_ends();
            (Op::Shutdown, SHUTDOWN_SEND)
        } else if std::mem::take(&mut owed.credit) {
            (Op::CreditUpdate, 0)
        } else {
            return None;
        };
        Some((self.header(op, 0, flags), false))
    }

    /// Whether bytes may go to the guest now.
    pub(super) fn can_deliver(&self) -> bool {
        self.phase == Phase::Open && !self.owed.response && self.flow.room() > 0
    }

    pub(super) fn has_kept(&self) -> bool {
        !(self.kept.is_empty() && self.unsent.is_empty())
    }

    /// The same connection as another guest had it.
    pub(super) fn with_legacy(mut self, unread: Vec<u8>, unsent: Vec<u8>) -> Self {
        self.unread = unread.into();
        self.unsent = unsent.into();
        self
    }

    /// Whether it can go on in another guest, as far as the host knows.
    pub(super) fn is_movable(&self) -> bool {
        self.phase == Phase::Open && self.flow.is_whole() && !self.owed.shutdown
    }

    /// What goes with it: bytes that were not read, and those that were not sent.
    pub(super) fn into_legacy(self, mut unread: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
        unread.extend(self.unread);
        (unread, self.unsent.into_iter().chain(self.kept).collect())
    }

    /// Bytes that the guest before did not read, at most so many.
    pub(super) fn take_unread(&mut self, most: u64) -> Vec<u8> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        self.unread.drain(..most.min(self.unread.len())).collect()
    }

    pub(super) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend(bytes);
    }

    /// Sends what was kept back, as far as that goes, and what follows from it.
    ///
    /// # Errors
    ///
    /// When the network is gone.
    pub(super) fn push(&mut self, id: StreamId, network: &mut dyn Network) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let (first, _) = self.unsent.as_slices();
            match network.send_bytes(id, first) {
                Ok(0) => return Ok(()),
                Ok(sent) => drop(self.unsent.drain(..sent.min(self.unsent.len()))),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        while !self.kept.is_empty() {
            let (first, _) = self.kept.as_slices();
            match network.send_bytes(id, first) {
                Ok(sent) => {
                    self.kept.drain(..sent.min(self.kept.len()));
                    self.flow.forwarded(u32::try_from(sent).unwrap_or(u32::MAX));
                    if sent == 0 {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        if !self.has_kept() {
            // A burst is over; its memory need not stay.
            self.kept = VecDeque::new();
            if self.flow.guest_ended().send && !self.has_ended_sending {
                self.has_ended_sending = true;
                network.end_sending(id);
            }
        }
        Ok(())
    }

    /// Whether all is said and done, from both sides.
    pub(super) fn is_over(&self) -> bool {
        self.flow.is_over() && !self.has_kept()
    }

    /// The network is gone, or let go: the guest is to be told, with these flags.
    pub(super) fn give_up(
        &mut self,
        id: StreamId,
        network: &mut dyn Network,
        how: Close,
        flags: u32,
    ) {
        network.close(id, how);
        self.phase = Phase::Gone;
        self.kept = VecDeque::new();
        self.unsent = VecDeque::new();
        self.unread = VecDeque::new();
        self.owed = Owed {
            reset: Some(flags),
            ..Owed::default()
        };
    }
}

/// A packet from the host without credit.
pub(super) fn header(ports: Ports, op: Op, flags: u32) -> Header {
    Header {
        src_cid: HOST_CID,
        dst_cid: GUEST_CID,
        src_port: ports.host,
        dst_port: ports.guest,
        socket_type: TYPE_STREAM,
        op: op.raw(),
        flags,
        ..Header::default()
    }
}

/// What a shutdown's flags say.
pub(super) const fn ends(flags: u32) -> Ends {
    Ends {
        receive: flags & SHUTDOWN_RECEIVE != 0,
        send: flags & SHUTDOWN_SEND != 0,
    }
}
