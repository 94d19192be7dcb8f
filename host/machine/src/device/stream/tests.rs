//! A driver that is good or bad, and a network that is a script.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use serde_json::Value;
use wharf_abi::stream::{
    CONNECT_PORT, Endpoint, GUEST_CID, HOST_CID, Header, Op, Refusal, SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND, TYPE_STREAM,
};
use wharf_model::stream::HOST_CREDIT;
use zerocopy::{FromBytes, IntoBytes};

use super::{Close, Happening, Moved, Network, StreamId, Streams};
use crate::device::Broken;
use crate::device::testing::{Guest, Plan};
use crate::handover::Luggage;
use crate::transfer::Buffers;
use crate::upgrade::Resting;

const PLAN: Plan = Plan {
    memory: 4 << 20,
    entries: 16,
    buffers: 0x10_0000,
    buffer: 4096,
    sent: 0x20_0000,
    packet: 0x1_1000,
};

/// What the network did and will do.
#[derive(Debug, Default)]
struct Script {
    happens: VecDeque<Happening>,
    arrives: BTreeMap<StreamId, VecDeque<Vec<u8>>>,
    /// Bytes that it still takes.
    takes: usize,
    took: Vec<u8>,
    broken: bool,
    ended: Vec<StreamId>,
    closed: Vec<(StreamId, Close)>,
    wanted: Vec<SocketAddr>,
    client: Option<SocketAddr>,
    refuses: Option<Refusal>,
    is_shut: bool,
    gave: Vec<StreamId>,
    taken: u64,
}

#[derive(Clone, Debug)]
struct Fake {
    script: Arc<Mutex<Script>>,
    fd: Arc<std::fs::File>,
}

impl Fake {
    fn edit<T>(&self, edit: impl FnOnce(&mut Script) -> T) -> T {
        edit(&mut self.script.lock().unwrap())
    }
}

impl Network for Fake {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn open(&mut self) {}

    fn poll(&mut self, happened: &mut Vec<Happening>) -> bool {
        self.edit(|it| happened.extend(it.happens.drain(..)));
        true
    }

    fn connect(&mut self, to: SocketAddr) -> Result<StreamId, Refusal> {
        self.edit(|it| {
            it.wanted.push(to);
            it.refuses.map_or(Ok(StreamId(1000)), Err)
        })
    }

    fn client(&self, _: StreamId) -> SocketAddr {
        let client = self.edit(|it| it.client);
        client.unwrap_or(SocketAddr::from(([0; 16], 0)))
    }

    fn receive(&mut self, id: StreamId, into: &Buffers<'_>) -> io::Result<usize> {
        self.edit(|it| {
            if it.broken {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            let queue = it.arrives.entry(id).or_default();
            let room = usize::try_from(into.len()).unwrap();
            let mut bytes = queue.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
            // As a socket: all that is there, up to the end, which comes by itself.
            while !bytes.is_empty()
                && bytes.len() < room
                && let Some(more) = queue.pop_front_if(|it| !it.is_empty())
            {
                bytes.extend(more);
            }
            let rest = bytes.split_off(bytes.len().min(room));
            if !rest.is_empty() {
                queue.push_front(rest);
            }
            Ok(into.copy_in(&bytes))
        })
    }

    fn send(&mut self, id: StreamId, from: &Buffers<'_>) -> io::Result<usize> {
        let mut bytes = vec![0; usize::try_from(from.len()).unwrap()];
        from.copy_out(&mut bytes);
        self.send_bytes(id, &bytes)
    }

    fn send_bytes(&mut self, _: StreamId, bytes: &[u8]) -> io::Result<usize> {
        self.edit(|it| {
            if it.broken {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let count = bytes.len().min(it.takes);
            if count == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            it.takes -= count;
            it.took.extend(&bytes[..count]);
            Ok(count)
        })
    }

    fn end_sending(&mut self, id: StreamId) {
        self.edit(|it| it.ended.push(id));
    }

    fn close(&mut self, id: StreamId, how: Close) {
        self.edit(|it| it.closed.push((id, how)));
    }

    fn shut(&mut self) {
        self.edit(|it| it.is_shut = true);
    }

    fn give(&mut self, id: StreamId) -> Option<OwnedFd> {
        self.edit(|it| it.gave.push(id));
        self.fd.as_fd().try_clone_to_owned().ok()
    }

    fn take(&mut self, _: OwnedFd) -> Option<StreamId> {
        self.edit(|it| {
            it.taken += 1;
            Some(StreamId(2000 + it.taken))
        })
    }

    fn carry(&mut self, _: &mut Luggage) -> io::Result<Value> {
        Ok(Value::Null)
    }

    fn resume(&mut self, _: bool) {
        self.edit(|it| it.is_shut = false);
    }

    fn let_go(&mut self) {}
}

/// A packet that the guest received.
#[derive(Debug, PartialEq)]
struct Got {
    op: Op,
    host_port: u32,
    guest_port: u32,
    flags: u32,
    bytes: Vec<u8>,
}

struct Driver {
    guest: Guest,
    streams: Streams,
    network: Fake,
}

impl Driver {
    fn new() -> Self {
        let network = Fake {
            script: Arc::default(),
            fd: Arc::new(std::fs::File::open("/dev/null").unwrap()),
        };
        Self {
            guest: Guest::new(PLAN),
            streams: Streams::new(Box::new(network.clone())),
            network,
        }
    }

    /// Gives the device so many receive buffers.
    fn offer(&mut self, count: u16) {
        self.guest.offer(count, PLAN.buffer.try_into().unwrap());
    }

    fn send(&mut self, header: Header, bytes: &[u8]) {
        self.guest.send(&[header.as_bytes(), bytes].concat());
    }

    /// Sends a packet of a connection, with credit for much.
    fn say(&mut self, op: Op, (host, guest): (u32, u32), flags: u32, bytes: &[u8]) {
        let header = Header {
            flags,
            ..packet(op, host, guest, bytes.len())
        };
        self.send(header, bytes);
    }

    fn try_serve(&mut self) -> Result<bool, (u16, Broken)> {
        let streams = &mut self.streams;
        self.guest
            .serve(|queues, user, budget| streams.serve(queues, user, budget))
    }

    /// Has the device look, and takes out what it has for the guest.
    fn serve(&mut self) -> Vec<Got> {
        self.try_serve().unwrap();
        self.guest.received().iter().map(|it| read(it)).collect()
    }

    fn happens(&self, happening: Happening) {
        self.network.edit(|it| it.happens.push_back(happening));
    }

    fn arrives(&self, id: StreamId, bytes: &[u8], ends: bool) {
        self.network.edit(|it| {
            let queue = it.arrives.entry(id).or_default();
            queue.push_back(bytes.to_vec());
            if ends {
                queue.push_back(Vec::new());
            }
        });
        self.happens(Happening::Readable { id, ends });
    }

    /// A connection from outside that the guest has taken.
    fn connected(&mut self) -> (StreamId, (u32, u32)) {
        self.connected_by(&[0; size_of::<Endpoint>()])
    }

    /// One of whose client this is said.
    fn connected_by(&mut self, client: &[u8]) -> (StreamId, (u32, u32)) {
        self.offer(8);
        self.network.edit(|it| it.takes = 1 << 20);
        let id = StreamId(7);
        self.happens(Happening::Incoming { id, port: 80 });
        let got = self.serve();
        assert_eq!(
            (
                got.len(),
                got[0].op,
                got[0].guest_port,
                got[0].bytes.as_slice()
            ),
            (1, Op::Request, 80, client)
        );
        let ports = (got[0].host_port, 80);
        self.say(Op::Response, ports, 0, b"");
        assert_eq!(self.serve(), []);
        (id, ports)
    }
}

fn read(packet: &[u8]) -> Got {
    let (header, bytes) = Header::read_from_prefix(packet).unwrap();
    assert_eq!(u64::from(header.len), u64::try_from(bytes.len()).unwrap());
    assert_eq!(
        ({ header.src_cid }, { header.dst_cid }),
        (HOST_CID, GUEST_CID)
    );
    Got {
        op: Op::from_raw(header.op).unwrap(),
        host_port: header.src_port,
        guest_port: header.dst_port,
        flags: header.flags,
        bytes: bytes.to_vec(),
    }
}

fn packet(op: Op, host: u32, guest: u32, len: usize) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        len: u32::try_from(len).unwrap(),
        socket_type: TYPE_STREAM,
        op: op.raw(),
        flags: 0,
        buf_alloc: 1 << 20,
        fwd_cnt: 0,
    }
}

fn got(op: Op, (host_port, guest_port): (u32, u32), flags: u32, bytes: &[u8]) -> Got {
    Got {
        op,
        host_port,
        guest_port,
        flags,
        bytes: bytes.to_vec(),
    }
}

#[test]
fn bytes_go_both_ways_and_each_end_is_told() {
    let mut driver = Driver::new();
    let (id, ports) = driver.connected();
    driver.arrives(id, b"GET /", false);
    assert_eq!(driver.serve(), [got(Op::Data, ports, 0, b"GET /")]);
    driver.say(Op::Data, ports, 0, b"200 OK");
    assert_eq!(driver.serve(), []);
    assert_eq!(driver.network.edit(|it| it.took.clone()), b"200 OK");

    // The client has sent its last; the guest answers all the same.
    driver.arrives(id, b"bye", true);
    let told = driver.serve();
    assert_eq!(told[0], got(Op::Data, ports, 0, b"bye"));
    assert_eq!(told[1], got(Op::Shutdown, ports, SHUTDOWN_SEND, b""));
    driver.say(Op::Data, ports, 0, b"!");
    driver.say(Op::Shutdown, ports, SHUTDOWN_SEND, b"");
    assert_eq!(driver.serve(), [got(Op::Reset, ports, 0, b"")]);
    driver.network.edit(|it| {
        assert_eq!(it.took, b"200 OK!");
        assert_eq!(it.ended, [id]);
        assert_eq!(it.closed, [(id, Close::Orderly)]);
    });
}

#[test]
fn who_is_restored_is_told_first_that_each_connection_is_cut_off() {
    let mut old = Driver::new();
    let (_, ports) = old.connected();
    // One that it is about to be asked for it knows nothing of.
    let id = StreamId(8);
    old.happens(Happening::Incoming { id, port: 80 });
    old.streams.look();
    old.streams.stray(
        super::Ports {
            host: 999,
            guest: 5,
        },
        3,
    );
    let state = old.streams.state();
    let mut known = state.connections.clone();
    known.sort_unstable();
    assert_eq!(known, [(999, 5), ports]);

    let mut new = Driver::new();
    new.streams.go_on(&state);
    new.offer(8);
    let id = StreamId(7);
    new.happens(Happening::Incoming { id, port: 80 });
    let told = new.serve();
    for it in &told[..2] {
        assert!(known.contains(&(it.host_port, it.guest_port)), "{it:?}");
        assert_eq!((it.op, it.flags), (Op::Reset, 0));
    }
    assert_eq!((told.len(), told[2].op), (3, Op::Request));
    assert!(told[2].host_port > ports.0, "{told:?}");

    // What a forged snapshot says of ports is only its own guest's to hear.
    let mut forged = Driver::new();
    let connections = vec![(0, 0), (u32::MAX, u32::MAX), ports, ports];
    forged.streams.go_on(&super::StreamsState {
        connections,
        next_port: 0,
    });
    forged.offer(8);
    assert_eq!(forged.serve().len(), 4);
    forged.happens(Happening::Incoming { id, port: 80 });
    assert_eq!(forged.serve()[0].op, Op::Request);
}

#[test]
fn a_connection_at_rest_goes_on_in_another_guest_with_all_its_bytes() {
    let mut old = Driver::new();
    let (id, ports) = old.connected();
    // The client reads slowly: a part of the answer is still with the host.
    old.network.edit(|it| it.takes = 3);
    old.say(Op::Data, ports, 0, b"200 OK");
    assert_eq!(old.serve(), []);
    // Somebody else has just arrived.
    old.happens(Happening::Incoming {
        id: StreamId(8),
        port: 81,
    });
    let resting = |host_port, guest_port| Resting {
        host_port,
        guest_port,
        unread: b"GET /1".to_vec(),
    };
    let moved = old.streams.give(vec![
        resting(ports.0, ports.1),
        // What it does not have it cannot give, nor give twice.
        resting(ports.0, ports.1),
        resting(ports.0, 99),
    ]);
    let shape = |it: &Moved| (it.port, it.unread.clone(), it.unsent.clone());
    let shapes: Vec<_> = moved.iter().map(shape).collect();
    assert_eq!(
        shapes,
        [
            (80, b"GET /1".to_vec(), b" OK".to_vec()),
            (81, Vec::new(), Vec::new())
        ]
    );
    old.network.edit(|it| {
        assert!(it.is_shut);
        assert_eq!(it.gave, [id, StreamId(8)]);
        assert_eq!(it.closed, []);
    });

    let mut new = Driver::new();
    new.offer(8);
    new.network.edit(|it| it.takes = 1 << 20);
    new.streams.take(moved);
    let asked = new.serve();
    let ops: Vec<_> = asked.iter().map(|it| (it.op, it.guest_port)).collect();
    assert_eq!(ops, [(Op::Request, 80), (Op::Request, 81)]);
    let ports = (asked[0].host_port, 80);
    new.say(Op::Response, ports, 0, b"");
    new.arrives(StreamId(2001), b"1", false);
    let got: Vec<u8> = new.serve().into_iter().flat_map(|it| it.bytes).collect();
    assert_eq!(got, b"GET /11");
    new.say(Op::Data, ports, 0, b"!");
    assert_eq!(new.serve(), []);
    assert_eq!(new.network.edit(|it| it.took.clone()), b" OK!");
}

#[test]
fn a_connection_of_which_one_end_has_gone_is_not_moved() {
    let mut driver = Driver::new();
    let (_, ports) = driver.connected();
    driver.say(Op::Shutdown, ports, SHUTDOWN_SEND, b"");
    assert_eq!(driver.serve(), []);
    let resting = Resting {
        host_port: ports.0,
        guest_port: ports.1,
        unread: Vec::new(),
    };
    assert_eq!(driver.streams.give(vec![resting]).len(), 0);
}

#[test]
fn a_guest_is_asked_for_a_bounded_number_of_connections_at_a_time() {
    let mut driver = Driver::new();
    for id in 1..=100 {
        driver.happens(Happening::Incoming {
            id: StreamId(id),
            port: 80,
        });
    }
    let mut asked: Vec<Got> = Vec::new();
    for round in 0.. {
        driver.offer(8);
        let got = driver.serve();
        if got.is_empty() {
            break;
        }
        assert!(round < 8, "more than it can keep");
        asked.extend(got);
    }
    assert_eq!(asked.len(), 64);
    // An answer, a refusal and a client that has gone each make room for one.
    driver.offer(8);
    driver.say(Op::Response, (asked[0].host_port, 80), 0, b"");
    driver.say(Op::Reset, (asked[1].host_port, 80), 0, b"");
    driver.happens(Happening::Failed(StreamId(3), Refusal::Refused));
    let ops: Vec<Op> = driver.serve().into_iter().map(|it| it.op).collect();
    let requests = ops.iter().filter(|op| **op == Op::Request).count();
    assert_eq!((requests, ops.len()), (3, 4), "{ops:?}");
}

#[test]
fn the_guest_is_told_who_connects() {
    for client in ["192.0.2.1:49152", "[2001:db8::1]:9", "[::]:0"] {
        let client: SocketAddr = client.parse().unwrap();
        let mut driver = Driver::new();
        driver.network.edit(|it| it.client = Some(client));
        let (id, ports) = driver.connected_by(Endpoint::from(client).as_bytes());
        // That was no byte of the stream.
        driver.arrives(id, b"hello", false);
        assert_eq!(driver.serve(), [got(Op::Data, ports, 0, b"hello")]);
    }
}

#[test]
fn who_does_not_listen_resets() {
    let mut driver = Driver::new();
    driver.offer(8);
    let id = StreamId(9);
    driver.happens(Happening::Incoming { id, port: 81 });
    let ports = (driver.serve()[0].host_port, 81);
    driver.say(Op::Reset, ports, 0, b"");
    assert_eq!(driver.serve(), [], "a reset is not answered");
    assert_eq!(
        driver.network.edit(|it| it.closed.clone()),
        [(id, Close::Reset)]
    );
    // What it says of it afterwards is of no connection.
    driver.say(Op::Data, ports, 0, b"x");
    assert_eq!(driver.serve(), [got(Op::Reset, ports, 0, b"")]);
}

#[test]
fn a_client_that_resets_is_gone_for_the_guest_too() {
    let mut driver = Driver::new();
    let (id, ports) = driver.connected();
    driver.network.edit(|it| it.broken = true);
    driver.happens(Happening::Readable { id, ends: true });
    assert_eq!(driver.serve(), [got(Op::Reset, ports, 0, b"")]);
    assert_eq!(
        driver.network.edit(|it| it.closed.clone()),
        [(id, Close::Reset)]
    );
    // It crosses what the guest sends.
    driver.say(Op::Reset, ports, 0, b"");
    assert_eq!(driver.serve(), []);
}

#[test]
fn what_the_network_does_not_take_is_kept_and_sent_later() {
    let mut driver = Driver::new();
    let (id, ports) = driver.connected();
    driver.network.edit(|it| it.takes = 3);
    driver.say(Op::Data, ports, 0, b"abcdef");
    driver.say(Op::Data, ports, 0, b"ghi");
    driver.say(Op::Shutdown, ports, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, b"");
    assert_eq!(driver.serve(), []);
    driver.network.edit(|it| {
        assert_eq!(
            (it.took.as_slice(), it.ended.len(), it.closed.len()),
            (&b"abc"[..], 0, 0)
        );
        it.takes = 100;
    });
    driver.happens(Happening::Writable(id));
    assert_eq!(driver.serve(), [got(Op::Reset, ports, 0, b"")]);
    driver.network.edit(|it| {
        assert_eq!(it.took, b"abcdefghi");
        assert_eq!(
            (it.ended.clone(), it.closed.clone()),
            (vec![id], vec![(id, Close::Orderly)])
        );
    });
}

#[test]
fn a_guest_that_sends_more_than_its_credit_faults() {
    let mut driver = Driver::new();
    let (_, ports) = driver.connected();
    driver.network.edit(|it| it.takes = 0);
    let half = vec![0; usize::try_from(HOST_CREDIT / 2).unwrap()];
    driver.say(Op::Data, ports, 0, &half);
    driver.say(Op::Data, ports, 0, &half);
    assert_eq!(driver.serve(), []);
    driver.say(Op::Data, ports, 0, b"x");
    assert_eq!(driver.try_serve(), Err((1, Broken::Overdrawn)));
}

#[test]
fn credit_comes_back_when_the_network_takes_it() {
    let mut driver = Driver::new();
    let (id, ports) = driver.connected();
    driver.network.edit(|it| it.takes = 0);
    let half = vec![0; usize::try_from(HOST_CREDIT / 2).unwrap()];
    driver.say(Op::Data, ports, 0, &half);
    assert_eq!(driver.serve(), []);
    driver.network.edit(|it| it.takes = usize::MAX);
    driver.happens(Happening::Writable(id));
    assert_eq!(driver.serve(), [got(Op::CreditUpdate, ports, 0, b"")]);
    // The same when it is taken at once.
    driver.say(Op::Data, ports, 0, &half);
    assert_eq!(driver.serve(), [got(Op::CreditUpdate, ports, 0, b"")]);
    driver.say(Op::CreditRequest, ports, 0, b"");
    assert_eq!(driver.serve(), [got(Op::CreditUpdate, ports, 0, b"")]);
}

#[test]
fn a_guest_gets_no_more_than_it_has_room_for() {
    let mut driver = Driver::new();
    let (id, ports) = driver.connected();
    let little = Header {
        buf_alloc: 4,
        ..packet(Op::CreditUpdate, ports.0, ports.1, 0)
    };
    driver.send(little, b"");
    driver.arrives(id, b"abcdefgh", false);
    assert_eq!(driver.serve(), [got(Op::Data, ports, 0, b"abcd")]);
    assert_eq!(driver.serve(), []);
    driver.send(
        Header {
            fwd_cnt: 4,
            ..little
        },
        b"",
    );
    assert_eq!(driver.serve(), [got(Op::Data, ports, 0, b"efgh")]);
}

#[test]
fn without_receive_buffers_nothing_is_lost() {
    let mut driver = Driver::new();
    driver.network.edit(|it| it.takes = 100);
    let id = StreamId(7);
    driver.happens(Happening::Incoming { id, port: 80 });
    assert_eq!(driver.serve(), []);
    driver.offer(1);
    let ports = (driver.serve()[0].host_port, 80);
    driver.say(Op::Response, ports, 0, b"");
    driver.arrives(id, b"abc", true);
    assert_eq!(driver.serve(), []);
    driver.offer(1);
    assert_eq!(driver.serve(), [got(Op::Data, ports, 0, b"abc")]);
    driver.offer(1);
    assert_eq!(
        driver.serve(),
        [got(Op::Shutdown, ports, SHUTDOWN_SEND, b"")]
    );
}

#[test]
fn a_guest_connects_to_the_outside() {
    let mut driver = Driver::new();
    driver.offer(8);
    driver.network.edit(|it| it.takes = 100);
    let ports = (CONNECT_PORT, 5000);
    let mut to = [0; 20];
    to[10..16].copy_from_slice(&[0xFF, 0xFF, 192, 0, 2, 7]);
    to[16] = 80;
    driver.say(Op::Request, ports, 0, &to);
    assert_eq!(driver.serve(), []);
    let wanted = driver.network.edit(|it| it.wanted.clone());
    assert_eq!(wanted, ["192.0.2.7:80".parse().unwrap()]);
    driver.happens(Happening::Connected(StreamId(1000)));
    driver.arrives(StreamId(1000), b"hello", false);
    assert_eq!(
        driver.serve(),
        [
            got(Op::Response, ports, 0, b""),
            got(Op::Data, ports, 0, b"hello")
        ]
    );
    // The same port again, while it is in use, is the guest's mistake.
    driver.say(Op::Request, ports, 0, &to);
    assert_eq!(driver.serve(), [got(Op::Reset, ports, 0, b"")]);
}

#[test]
fn who_cannot_be_connected_is_told_why() {
    let mut to = [0; 20];
    to[15] = 1;
    to[16] = 80;
    for (bytes, refuses, told) in [
        (&to[..], Some(Refusal::Denied), Refusal::Denied),
        (&to[..], Some(Refusal::TooMany), Refusal::TooMany),
        (&to[..19], None, Refusal::Invalid),
        (&[0; 20][..], None, Refusal::Invalid),
        (&[][..], None, Refusal::Invalid),
    ] {
        let mut driver = Driver::new();
        driver.offer(8);
        driver.network.edit(|it| it.refuses = refuses);
        driver.say(Op::Request, (CONNECT_PORT, 9), 0, bytes);
        let expected = [got(Op::Reset, (CONNECT_PORT, 9), told.raw(), b"")];
        assert_eq!(driver.serve(), expected, "{bytes:?}");
    }
    let mut driver = Driver::new();
    driver.offer(8);
    driver.say(Op::Request, (CONNECT_PORT, 9), 0, &to);
    driver.happens(Happening::Failed(StreamId(1000), Refusal::TimedOut));
    let expected = [got(
        Op::Reset,
        (CONNECT_PORT, 9),
        Refusal::TimedOut.raw(),
        b"",
    )];
    assert_eq!(driver.serve(), expected);
}

#[test]
fn packets_that_make_no_sense_are_the_guests_fault() {
    type Spoil = fn(&mut Header);
    let spoils: [(Spoil, usize); 6] = [
        (|it| it.src_cid = HOST_CID, 0),
        (|it| it.dst_cid = GUEST_CID, 0),
        (|it| it.socket_type = 2, 0),
        (|it| it.len = 1, 0),
        (|it| it.len = u32::MAX, 3),
        (|it| it.len = 0, 3),
    ];
    for (spoil, len) in spoils {
        let mut driver = Driver::new();
        let mut header = packet(Op::Data, 1024, 80, len);
        spoil(&mut header);
        driver.send(header, &vec![0; len]);
        assert_eq!(driver.try_serve(), Err((1, Broken::Packet)), "{header:?}");
    }
    let mut driver = Driver::new();
    driver.guest.send(&[0; 43]);
    assert_eq!(driver.try_serve(), Err((1, Broken::NoHeader)));
    let mut driver = Driver::new();
    driver.guest.offer(1, 511);
    driver.happens(Happening::Incoming {
        id: StreamId(1),
        port: 80,
    });
    assert_eq!(driver.try_serve(), Err((0, Broken::SmallBuffer)));
}

#[test]
fn what_is_out_of_place_ends_the_connection_and_no_more() {
    for op in [Op::Request, Op::Response] {
        let mut driver = Driver::new();
        let (id, ports) = driver.connected();
        driver.say(op, ports, 0, b"");
        assert_eq!(driver.serve(), [got(Op::Reset, ports, 0, b"")], "{op:?}");
        assert_eq!(
            driver.network.edit(|it| it.closed.clone()),
            [(id, Close::Reset)]
        );
    }
    // An operation that there is not, and bytes after the last.
    let mut driver = Driver::new();
    let (_, ports) = driver.connected();
    driver.send(
        Header {
            op: 99,
            ..packet(Op::Data, ports.0, ports.1, 0)
        },
        b"",
    );
    assert_eq!(driver.serve(), [got(Op::Reset, ports, 0, b"")]);
    let mut driver = Driver::new();
    let (_, ports) = driver.connected();
    driver.say(Op::Shutdown, ports, SHUTDOWN_SEND, b"");
    driver.say(Op::Data, ports, 0, b"more");
    assert_eq!(driver.serve(), [got(Op::Reset, ports, 0, b"")]);
    assert_eq!(driver.network.edit(|it| it.took.len()), 0);
}

#[test]
fn resets_for_nobody_are_bounded() {
    let mut driver = Driver::new();
    for port in 0..200 {
        driver.say(Op::Data, (77, port), 0, b"");
        driver.try_serve().unwrap();
    }
    assert_eq!(driver.streams.strays.len(), super::STRAYS_MAX);
}

/// A network that takes and gives in fits and starts.
#[derive(Clone, Copy, Debug)]
enum Fit {
    /// So many bytes come.
    Arrive(usize),
    /// So many bytes are taken from now on.
    Take(usize),
    /// The guest looks, and sends back what it got.
    Echo,
}

fn fits() -> impl Strategy<Value = Vec<Fit>> {
    let fit = prop_oneof![
        (1_usize..9_000).prop_map(Fit::Arrive),
        (0_usize..5_000).prop_map(Fit::Take),
        Just(Fit::Echo),
    ];
    proptest::collection::vec(fit, 1..60)
}

/// A packet of a guest that knows the protocol and keeps to none of it.
fn wild() -> impl Strategy<Value = (Header, usize)> {
    let port = prop_oneof![Just(CONNECT_PORT), Just(1024_u32), Just(1025), any::<u32>()];
    let guest_port = prop_oneof![Just(80_u32), 0_u32..4];
    let op = prop_oneof![1_u16..8, any::<u16>()];
    let sizes = (0_usize..200, any::<u32>(), any::<u32>());
    (port, guest_port, op, 0_u32..4, sizes).prop_map(
        |(host, guest, op, flags, (len, buf_alloc, fwd_cnt))| {
            let header = Header {
                op,
                flags,
                buf_alloc,
                fwd_cnt,
                ..packet(Op::Data, host, guest, len)
            };
            (header, len)
        },
    )
}

proptest! {
    #[test]
    fn what_is_echoed_comes_back_whole_and_in_order(fits in fits()) {
        let mut driver = Driver::new();
        let (id, ports) = driver.connected();
        driver.network.edit(|it| it.takes = 0);
        let (mut came, mut consumed) = (Vec::<u8>::new(), 0_u32);
        let mut waiting = VecDeque::new();
        // In the end all is taken.
        let rest = std::iter::repeat_n([Fit::Take(1 << 20), Fit::Echo], 200).flatten();
        for fit in fits.into_iter().chain(rest) {
            match fit {
                // More than the host keeps would wait for ever to be echoed.
                Fit::Arrive(count) if came.len() + count >= 100_000 => {}
                Fit::Arrive(count) => {
                    let bytes: Vec<u8> = (0..count).map(|at| (came.len() + at) as u8).collect();
                    came.extend(&bytes);
                    driver.arrives(id, &bytes, false);
                }
                Fit::Take(count) => {
                    driver.network.edit(|it| it.takes = count);
                    driver.happens(Happening::Writable(id));
                }
                Fit::Echo => {
                    for it in driver.serve() {
                        driver.offer(1);
                        if it.op == Op::Data {
                            waiting.push_back(it.bytes);
                        }
                    }
                    // One packet at a time, as far as what the host keeps allows.
                    let kept = came.len() - driver.network.edit(|it| it.took.len());
                    let room = usize::try_from(HOST_CREDIT).unwrap();
                    if let Some(bytes) = waiting.pop_front().filter(|_| kept < room) {
                        consumed = consumed.wrapping_add(u32::try_from(bytes.len()).unwrap());
                        let header = Header {
                            fwd_cnt: consumed,
                            buf_alloc: 20_000,
                            ..packet(Op::Data, ports.0, ports.1, bytes.len())
                        };
                        driver.send(header, &bytes);
                    }
                }
            }
        }
        let took = driver.network.edit(|it| it.took.clone());
        prop_assert_eq!(took.len(), came.len());
        prop_assert!(took == came);
        prop_assert!(driver.network.edit(|it| it.closed.is_empty()));
    }

    #[test]
    fn whatever_a_guest_sends_harms_only_itself(
        packets in proptest::collection::vec((wild(), any::<bool>()), 1..60)
    ) {
        let mut driver = Driver::new();
        driver.offer(8);
        let mut ids = 0;
        for ((header, len), happens) in packets {
            if happens && driver.guest.seen == driver.guest.offered - 8 {
                ids += 1;
                driver.happens(Happening::Incoming { id: StreamId(ids), port: 80 });
                driver.happens(Happening::Readable { id: StreamId(ids), ends: true });
            }
            driver.send(header, &vec![0; len]);
            let got = match driver.try_serve() {
                Ok(_) => driver.serve().len(),
                // Its fault, and its end.
                Err((_, Broken::Overdrawn)) => return Ok(()),
                Err(other) => panic!("{other:?}"),
            };
            driver.offer(got.try_into().unwrap());
            let streams = &driver.streams;
            prop_assert!(streams.connections.len() <= usize::try_from(ids).unwrap() + 1);
            prop_assert_eq!(streams.connections.len(), streams.by_ports.len());
            prop_assert!(streams.strays.len() <= super::STRAYS_MAX);
        }
    }
}
