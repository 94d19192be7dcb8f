//! One connection: what was said, what was told, and what is kept meanwhile.
//!
//! ```text
//!              Response              said both and told both, or Reset
//!  Connecting ──────────▶ Open ─────────────────────────────────────▶ Ended
//!       │                                                               ▲
//!       └──────────────────────────── Reset ────────────────────────────┘
//! ```
//!
//! Each direction ends on its own while the connection is open: by what this side
//! said ([`Connection::said`]) and by what it was told.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::task::{Context, Poll, Waker};

use wharf_abi::stream::{
    CONNECT_PORT, GUEST_CID, HOST_CID, Header, Op, Refusal, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
    TYPE_STREAM,
};
use wharf_abi::upgrade::Rest;

use super::Error;
use super::credit::Credit;
use super::output::Output;
use super::packet::{NoPacket, Packet};

/// Bytes that are kept to be read again: more than a request has before its body.
const HEARD_MAX: usize = 16 << 10;

/// Both directions.
pub(super) const BOTH: u32 = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;

/// What tells connections apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// The guest's port.
    pub(super) local: u32,
    /// The host's.
    pub(super) peer: u32,
}

/// Whom a connection belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A listener on its port, until it is accepted.
    Backlog,
    /// A stream.
    Stream,
    /// Nobody any more: it goes once the host is done with it.
    Nobody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Open,
    Ended(End),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides were done.
    Closed,
    /// It was reset.
    Reset,
    /// It was never made.
    Refused(Refusal),
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) key: Key,
    /// Who is at the other end.
    pub(super) peer: SocketAddr,
    pub(super) owner: Owner,
    pub(super) phase: Phase,
    credit: Credit,
    /// Bytes for the reader.
    received: VecDeque<u8>,
    /// What was read since the last byte was written; none when that is more than is
    /// kept.
    heard: Option<Vec<u8>>,
    /// A packet that is not full yet.
    begun: Option<Packet>,
    /// [`SHUTDOWN_SEND`] and [`SHUTDOWN_RECEIVE`], as this side said.
    said: u32,
    /// The same, as the host did.
    told: u32,
    /// The host asked for the credit.
    asked: bool,
    /// Whether the output knows of it.
    marked: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Connection {
    pub(super) fn new(
        key: Key,
        peer: SocketAddr,
        owner: Owner,
        phase: Phase,
        credit: Credit,
    ) -> Self {
        Self {
            key,
            peer,
            owner,
            phase,
            credit,
            received: VecDeque::new(),
            heard: Some(Vec::new()),
            begun: None,
            said: 0,
            told: 0,
            asked: false,
            marked: false,
            reader: None,
            writer: None,
        }
    }

    /// Waits for the answer to a request.
    pub(super) fn poll_connected(&mut self, context: &Context<'_>) -> Poll<Result<(), Error>> {
        match self.phase {
            Phase::Connecting => {
                self.writer = Some(context.waker().clone());
                Poll::Pending
            }
            Phase::Open | Phase::Ended(End::Closed) => Poll::Ready(Ok(())),
            Phase::Ended(End::Reset) => Poll::Ready(Err(Error::ConnectionReset)),
            Phase::Ended(End::Refused(refusal)) => Poll::Ready(Err(Error::Refused(refusal))),
        }
    }

    /// Takes bytes that came; 0 at their end.
    pub(super) fn poll_read(
        &mut self,
        slot: usize,
        buffer: &mut [u8],
        context: &Context<'_>,
        output: &mut Output,
    ) -> Poll<Result<usize, Error>> {
        if buffer.is_empty() || self.said & SHUTDOWN_RECEIVE != 0 {
            return Poll::Ready(Ok(0));
        }
        let count = self.take_received(buffer);
        if count > 0 {
            self.hears(buffer.get(..count).unwrap_or_default());
            // What is kept is at most the window, which is a `u32`.
            self.credit.forward(count as u32);
            if self.credit.is_update_due() {
                self.mark(slot, output);
            }
            return Poll::Ready(Ok(count));
        }
        if self.told & SHUTDOWN_SEND != 0 {
            return Poll::Ready(Ok(0));
        }
        match self.phase {
            Phase::Ended(End::Closed) => Poll::Ready(Ok(0)),
            Phase::Ended(End::Reset) => Poll::Ready(Err(Error::ConnectionReset)),
            Phase::Ended(End::Refused(refusal)) => Poll::Ready(Err(Error::Refused(refusal))),
            Phase::Connecting | Phase::Open => {
                self.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Puts bytes into packets, as far as credit and memory go.
    ///
    /// What it takes is within the credit, so that nothing but the queue is between
    /// those bytes and the host.
    pub(super) fn poll_write(
        &mut self,
        slot: usize,
        bytes: &[u8],
        context: &Context<'_>,
        output: &mut Output,
    ) -> Poll<Result<usize, Error>> {
        match self.phase {
            Phase::Ended(End::Closed) => return Poll::Ready(Err(Error::BrokenPipe)),
            Phase::Ended(End::Reset) => return Poll::Ready(Err(Error::ConnectionReset)),
            Phase::Ended(End::Refused(it)) => return Poll::Ready(Err(Error::Refused(it))),
            Phase::Connecting | Phase::Open => {}
        }
        if self.said & SHUTDOWN_SEND != 0 || self.told & SHUTDOWN_RECEIVE != 0 {
            return Poll::Ready(Err(Error::BrokenPipe));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let sendable = self.credit.sendable() as usize;
        if sendable == 0 {
            self.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let bytes = bytes.get(..sendable).unwrap_or(bytes);
        let (count, stopped) = self.pack(bytes, output);
        // At most the credit, which is a `u32`.
        self.credit.send(count as u32);
        if count > 0 {
            self.heard.get_or_insert_default().clear();
            self.mark(slot, output);
            return Poll::Ready(Ok(count));
        }
        match stopped {
            Some(NoPacket::OutOfMemory) => Poll::Ready(Err(Error::OutOfMemory)),
            Some(NoPacket::Wait) | None => {
                output.starve(context.waker());
                Poll::Pending
            }
        }
    }

    /// Says that this side sends, or receives, no more.
    pub(super) fn shutdown(&mut self, directions: u32, output: &mut Output) {
        if self.said | directions == self.said {
            return;
        }
        self.said |= directions;
        if directions & SHUTDOWN_RECEIVE != 0 {
            self.received = VecDeque::new();
        }
        if self.phase != Phase::Open {
            return;
        }
        self.end_packet(output);
        self.say(Op::Shutdown, self.said, output);
        self.end_if_done(output);
        self.wake();
    }

    /// Ends it at once.
    pub(super) fn abort(&mut self, output: &mut Output) {
        if !matches!(self.phase, Phase::Ended(_)) {
            self.say(Op::Reset, 0, output);
            self.end(End::Reset, output);
            self.received = VecDeque::new();
        }
    }

    /// Sends what has gathered since the last time.
    pub(super) fn settle(&mut self, output: &mut Output) {
        self.marked = false;
        if self.phase != Phase::Open {
            return;
        }
        self.end_packet(output);
        let reads = (self.said & SHUTDOWN_RECEIVE) | (self.told & SHUTDOWN_SEND) == 0;
        if self.asked || (reads && self.credit.is_update_due()) {
            self.asked = false;
            self.say(Op::CreditUpdate, 0, output);
        }
    }

    /// Takes a packet from the host.
    pub(super) fn hear(
        &mut self,
        slot: usize,
        (op, header): (Op, &Header),
        payload: &[u8],
        output: &mut Output,
    ) {
        if let Phase::Ended(_) = self.phase {
            return;
        }
        if op == Op::Reset {
            let connecting = self.phase == Phase::Connecting;
            let refusal = Refusal::from_raw(header.flags).unwrap_or(Refusal::Refused);
            let end = match self.told & self.said {
                _ if connecting => End::Refused(refusal),
                // The host had nothing more to say, or nobody to say it to.
                BOTH => End::Closed,
                _ if self.said == BOTH => End::Closed,
                _ => End::Reset,
            };
            self.end(end, output);
            return;
        }
        self.credit.hear(header);
        match op {
            Op::Response if self.phase == Phase::Connecting => {
                self.phase = Phase::Open;
                // Whoever gave up meanwhile has said so.
                self.wake();
            }
            Op::Data => self.keep(payload, output),
            Op::Shutdown => {
                self.told |= header.flags & BOTH;
                if self.told & SHUTDOWN_RECEIVE != 0
                    && let Some(packet) = self.begun.take()
                {
                    output.give_back(packet);
                }
                self.end_if_done(output);
                self.wake();
            }
            Op::CreditRequest => {
                self.asked = true;
                self.mark(slot, output);
            }
            Op::Request | Op::Response | Op::Reset | Op::CreditUpdate => {}
        }
        if self.credit.sendable() > 0
            && self.phase == Phase::Open
            && let Some(waker) = self.writer.take()
        {
            waker.wake();
        }
    }

    /// Keeps what was read, for who may have to read it again.
    fn hears(&mut self, bytes: &[u8]) {
        if let Some(heard) = &mut self.heard {
            if heard.len().saturating_add(bytes.len()) <= HEARD_MAX
                && heard.try_reserve(bytes.len()).is_ok()
            {
                heard.extend_from_slice(bytes);
            } else {
                self.heard = None;
            }
        }
    }

    /// Whether it goes on after what was said so far, in both directions.
    pub(super) fn goes_on(&self) -> bool {
        self.phase == Phase::Open && self.owner != Owner::Nobody && (self.said | self.told) == 0
    }

    /// Whether who reads next can be somebody else.
    pub(super) fn can_freeze(&self) -> bool {
        self.key.peer != CONNECT_PORT && self.goes_on() && self.heard.is_some()
    }

    /// Waits until reading goes on.
    pub(super) fn poll_nothing<T>(&mut self, context: &Context<'_>) -> Poll<T> {
        self.reader = Some(context.waker().clone());
        Poll::Pending
    }

    /// The connection and what its next reader is to read, if it is at rest.
    pub(super) fn resting(&self) -> Option<(Rest, Vec<u8>)> {
        let heard = self.heard.as_ref()?;
        let waits = self.reader.is_some() || self.owner == Owner::Backlog;
        if !waits || self.begun.is_some() || self.marked {
            return None;
        }
        let unread: Vec<u8> = heard.iter().chain(&self.received).copied().collect();
        let rest = Rest {
            host_port: self.key.peer,
            guest_port: self.key.local,
            // At most the window and what is kept.
            unread_len: unread.len() as u32,
            reserved: 0,
        };
        Some((rest, unread))
    }

    /// Whether somebody may still want to read or be told something.
    pub(super) fn is_worth_accepting(&self) -> bool {
        self.phase != Phase::Ended(End::Reset) || self.told & SHUTDOWN_SEND != 0
    }

    /// Says something without data.
    pub(super) fn say(&mut self, op: Op, flags: u32, output: &mut Output) {
        let header = self.header(op, flags, 0);
        output.say(&header, &[]);
    }

    /// Asks to be connected.
    pub(super) fn request(&mut self, destination: &[u8], output: &mut Output) {
        let header = self.header(Op::Request, 0, destination.len());
        output.say(&header, destination);
    }

    fn take_received(&mut self, buffer: &mut [u8]) -> usize {
        let mut count = 0;
        let (first, second) = self.received.as_slices();
        for part in [first, second] {
            let room = buffer.get_mut(count..).unwrap_or_default();
            let len = part.len().min(room.len());
            if let (Some(to), Some(from)) = (room.get_mut(..len), part.get(..len)) {
                to.copy_from_slice(from);
                count += len;
            }
        }
        self.received.drain(..count);
        count
    }

    /// Keeps bytes for the reader, if there is one.
    fn keep(&mut self, payload: &[u8], output: &mut Output) {
        if self.said & SHUTDOWN_RECEIVE != 0 || self.told & SHUTDOWN_SEND != 0 {
            return;
        }
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let fits = self.credit.accept(len) && self.received.try_reserve(payload.len()).is_ok();
        if !fits {
            // More than was promised, or than the heap has: it cannot go on.
            self.abort(output);
            return;
        }
        self.received.extend(payload);
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    /// Copies bytes into packets; says how many, and why it were not more.
    fn pack(&mut self, bytes: &[u8], output: &mut Output) -> (usize, Option<NoPacket>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut packet = match self.begun.take() {
                Some(packet) => packet,
                None => match output.data(rest.len()) {
                    Ok(packet) => packet,
                    Err(none) => return (bytes.len() - rest.len(), Some(none)),
                },
            };
            let count = packet.push(rest);
            rest = rest.get(count..).unwrap_or_default();
            self.begun = Some(packet);
            if !rest.is_empty() {
                self.end_packet(output);
            }
        }
        (bytes.len(), None)
    }

    fn end_packet(&mut self, output: &mut Output) {
        if let Some(packet) = self.begun.take() {
            let header = self.header(Op::Data, 0, packet.payload_len());
            output.push(packet, &header);
        }
    }

    fn end_if_done(&mut self, output: &mut Output) {
        if self.phase == Phase::Open && self.said & self.told == BOTH {
            self.say(Op::Reset, 0, output);
            self.end(End::Closed, output);
        }
    }

    fn end(&mut self, end: End, output: &mut Output) {
        self.phase = Phase::Ended(end);
        if let Some(packet) = self.begun.take() {
            output.give_back(packet);
        }
        self.wake();
    }

    fn mark(&mut self, slot: usize, output: &mut Output) {
        if !self.marked {
            self.marked = true;
            output.mark(slot);
        }
    }

    pub(super) fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()] {
            waker.into_iter().for_each(Waker::wake);
        }
    }

    fn header(&mut self, op: Op, flags: u32, len: usize) -> Header {
        let mut header = reply(self.key, op);
        header.flags = flags;
        // No packet is longer than `PAYLOAD_MAX`.
        header.len = len as u32;
        self.credit.tell(&mut header);
        header
    }
}

/// A header from this side of a connection to the other.
pub(super) fn reply(key: Key, op: Op) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: key.local,
        dst_port: key.peer,
        socket_type: TYPE_STREAM,
        op: op.raw(),
        ..Header::default()
    }
}
