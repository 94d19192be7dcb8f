//! Conversations between the table and a host that is played by the test.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::task::{Context, Poll, Waker};

use proptest::prelude::*;
use wharf_abi::stream::{
    CONNECT_PORT, Endpoint, GUEST_CID, HEADER_LEN, HOST_CID, Header, Op, Refusal, SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND, TYPE_STREAM,
};
use zerocopy::{FromBytes, IntoBytes};

use super::Error;
use super::connection::BOTH;
use super::table::{BACKLOG_MAX, Table};

const WINDOW: u32 = 1000;
const PORT: u16 = 80;
const HOST_PORT: u32 = 5000;

/// Where the guest connects to.
const OUTSIDE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), 443);

/// The guest's side, and the host's view of it.
struct Pair {
    table: Table,
    /// The guest's port of the connection.
    local: u32,
    peer: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

type Said = (Op, u32, Vec<u8>);

impl Pair {
    fn new() -> Self {
        Self {
            table: Table::new(WINDOW),
            local: PORT.into(),
            peer: HOST_PORT,
            buf_alloc: WINDOW,
            fwd_cnt: 0,
        }
    }

    /// A connection from outside, accepted.
    fn accepted() -> (Self, usize) {
        let mut pair = Self::new();
        pair.table.bind(PORT).unwrap();
        pair.host(Op::Request, 0, b"");
        assert_eq!(pair.says(), [(Op::Response, 0, vec![])]);
        let Poll::Ready(Ok(slot)) = pair.accept() else {
            panic!("there is a connection to accept");
        };
        (pair, slot)
    }

    fn accept(&mut self) -> Poll<Result<usize, Error>> {
        self.table.poll_accept(PORT, &context())
    }

    fn host(&mut self, op: Op, flags: u32, payload: &[u8]) {
        let header = Header {
            src_cid: HOST_CID,
            dst_cid: GUEST_CID,
            src_port: self.peer,
            dst_port: self.local,
            len: payload.len() as u32,
            socket_type: TYPE_STREAM,
            op: op.raw(),
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        };
        self.table.hear(&header, payload);
    }

    fn headers(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.table.settle();
        let output = self.table.output();
        let mut said = Vec::new();
        while let Some(packet) = output.pop() {
            let (header, payload) = Header::read_from_prefix(packet.bytes()).unwrap();
            assert_eq!((header.src_cid, header.dst_cid), (GUEST_CID, HOST_CID));
            assert_eq!({ header.len } as usize, payload.len());
            assert_eq!(packet.bytes().len(), HEADER_LEN + payload.len());
            said.push((header, payload.to_vec()));
            output.give_back(packet);
        }
        output.feed();
        said
    }

    /// What the guest has said since the last time.
    fn says(&mut self) -> Vec<Said> {
        self.headers()
            .into_iter()
            .map(|(header, payload)| (Op::from_raw(header.op).unwrap(), header.flags, payload))
            .collect()
    }
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// One thing that happens to an accepted connection.
enum Step {
    Host(Op, u32, &'static [u8]),
    Read(Poll<Result<&'static [u8], Error>>),
    Write(&'static [u8], Poll<Result<usize, Error>>),
    Shut(u32),
    Abort,
    Close,
    Says(&'static [(Op, u32, &'static [u8])]),
    /// Nothing of the connection is left.
    Gone,
}

use Step::{Abort, Close, Gone, Host, Read, Says, Shut, Write};

const EOF: Poll<Result<&[u8], Error>> = Poll::Ready(Ok(b""));
const NOTHING: Poll<Result<&[u8], Error>> = Poll::Pending;
const CUT_OFF: Poll<Result<&[u8], Error>> = Poll::Ready(Err(Error::ConnectionReset));
const UNREAD: Poll<Result<usize, Error>> = Poll::Ready(Err(Error::BrokenPipe));

const fn bytes(bytes: &[u8]) -> Poll<Result<&[u8], Error>> {
    Poll::Ready(Ok(bytes))
}

#[track_caller]
fn check(steps: &[Step]) {
    let (mut pair, slot) = Pair::accepted();
    for (at, step) in steps.iter().enumerate() {
        match step {
            Host(op, flags, payload) => pair.host(*op, *flags, payload),
            Read(expected) => {
                let mut buffer = [0; 64];
                let read = pair.table.poll_read(slot, &mut buffer, &context());
                let read = read.map_ok(|count| &buffer[..count]);
                assert_eq!(read, *expected, "step {at}");
            }
            Write(bytes, expected) => {
                let written = pair.table.poll_write(slot, bytes, &context());
                assert_eq!(written, *expected, "step {at}");
            }
            Shut(directions) => pair.table.shutdown(slot, *directions),
            Abort => pair.table.abort(slot),
            Close => pair.table.close(slot),
            Says(expected) => {
                let said = pair.says();
                let said: Vec<_> = said
                    .iter()
                    .map(|(op, flags, it)| (*op, *flags, &it[..]))
                    .collect();
                assert_eq!(said, *expected, "step {at}");
            }
            Gone => assert_eq!(pair.table.len(), 0, "step {at}"),
        }
    }
}

#[test]
fn what_is_said_in_one_breath_is_one_packet() {
    check(&[
        Write(b"one ", Poll::Ready(Ok(4))),
        Write(b"two", Poll::Ready(Ok(3))),
        Says(&[(Op::Data, 0, b"one two")]),
        Says(&[]),
    ]);
}

#[test]
fn bytes_are_read_in_order_and_then_waited_for() {
    check(&[
        Read(NOTHING),
        Host(Op::Data, 0, b"one "),
        Host(Op::Data, 0, b"two"),
        Read(bytes(b"one two")),
        Read(NOTHING),
    ]);
}

#[test]
fn the_peer_may_stop_sending_and_go_on_reading() {
    check(&[
        Host(Op::Data, 0, b"question"),
        Host(Op::Shutdown, SHUTDOWN_SEND, b""),
        Read(bytes(b"question")),
        Read(EOF),
        Write(b"answer", Poll::Ready(Ok(6))),
        Close,
        Says(&[(Op::Data, 0, b"answer"), (Op::Shutdown, BOTH, b"")]),
        Host(Op::Reset, 0, b""),
        Says(&[]),
        Gone,
    ]);
}

#[test]
fn the_guest_may_stop_sending_and_go_on_reading() {
    check(&[
        Write(b"question", Poll::Ready(Ok(8))),
        Shut(SHUTDOWN_SEND),
        Shut(SHUTDOWN_SEND),
        Write(b"more", UNREAD),
        Says(&[
            (Op::Data, 0, b"question"),
            (Op::Shutdown, SHUTDOWN_SEND, b""),
        ]),
        Host(Op::Data, 0, b"answer"),
        Read(bytes(b"answer")),
        Read(NOTHING),
        Host(Op::Shutdown, SHUTDOWN_SEND, b""),
        Read(EOF),
        Close,
        Says(&[(Op::Shutdown, BOTH, b"")]),
    ]);
}

#[test]
fn who_reads_no_more_is_sent_nothing() {
    check(&[
        Host(Op::Data, 0, b"lost"),
        Shut(SHUTDOWN_RECEIVE),
        Host(Op::Data, 0, b"lost"),
        Read(EOF),
        Write(b"still", Poll::Ready(Ok(5))),
        Says(&[
            (Op::Shutdown, SHUTDOWN_RECEIVE, b""),
            (Op::Data, 0, b"still"),
        ]),
    ]);
    check(&[
        Write(b"lost", Poll::Ready(Ok(4))),
        Host(Op::Shutdown, SHUTDOWN_RECEIVE, b""),
        Write(b"more", UNREAD),
        Says(&[]),
        Host(Op::Data, 0, b"kept"),
        Read(bytes(b"kept")),
    ]);
}

#[test]
fn who_has_said_and_been_told_both_resets_once() {
    check(&[
        Host(Op::Data, 0, b"last"),
        Host(Op::Shutdown, BOTH, b""),
        Shut(SHUTDOWN_SEND),
        Says(&[(Op::Shutdown, SHUTDOWN_SEND, b"")]),
        Read(bytes(b"last")),
        Read(EOF),
        Close,
        Says(&[(Op::Shutdown, BOTH, b""), (Op::Reset, 0, b"")]),
        Gone,
        Host(Op::Reset, 0, b""),
        Says(&[]),
    ]);
    check(&[
        Shut(BOTH),
        Host(Op::Shutdown, SHUTDOWN_SEND, b""),
        Says(&[(Op::Shutdown, BOTH, b"")]),
        Host(Op::Shutdown, SHUTDOWN_RECEIVE, b""),
        Says(&[(Op::Reset, 0, b"")]),
        Read(EOF),
        Write(b"x", UNREAD),
        Close,
        Says(&[]),
        Gone,
    ]);
}

#[test]
fn a_reset_is_heard_in_every_state_and_not_answered() {
    let reset = || Host(Op::Reset, 0, b"");
    let lost = || Write(b"x", Poll::Ready(Err(Error::ConnectionReset)));
    check(&[reset(), Read(CUT_OFF), lost(), Close, Says(&[]), Gone]);
    check(&[
        Host(Op::Data, 0, b"before"),
        Write(b"lost", Poll::Ready(Ok(4))),
        reset(),
        lost(),
        Read(bytes(b"before")),
        Read(CUT_OFF),
        Close,
        Says(&[]),
        Gone,
    ]);
    check(&[
        Host(Op::Shutdown, SHUTDOWN_SEND, b""),
        reset(),
        Read(EOF),
        lost(),
        Close,
        Says(&[]),
        Gone,
    ]);
    check(&[
        Shut(SHUTDOWN_SEND),
        Says(&[(Op::Shutdown, SHUTDOWN_SEND, b"")]),
        reset(),
        Read(CUT_OFF),
        Close,
        Says(&[]),
        Gone,
    ]);
    check(&[Close, reset(), Says(&[(Op::Shutdown, BOTH, b"")]), Gone]);
    check(&[Abort, reset(), Says(&[(Op::Reset, 0, b"")]), Close, Gone]);
}

#[test]
fn an_abort_says_nothing_but_reset() {
    check(&[
        Write(b"unsent", Poll::Ready(Ok(6))),
        Host(Op::Data, 0, b"unread"),
        Abort,
        Read(CUT_OFF),
        Says(&[(Op::Reset, 0, b"")]),
        Host(Op::Data, 0, b"crossed it"),
        Close,
        Says(&[]),
        Gone,
    ]);
}

#[test]
fn more_than_was_promised_ends_the_connection() {
    check(&[
        Host(Op::Data, 0, &[1; WINDOW as usize]),
        Host(Op::Data, 0, &[1]),
        Says(&[(Op::Reset, 0, b"")]),
        Read(CUT_OFF),
    ]);
}

#[test]
fn credit_is_told_when_asked_for_and_when_half_is_used() {
    check(&[
        Host(Op::CreditRequest, 0, b""),
        Says(&[(Op::CreditUpdate, 0, b"")]),
        Says(&[]),
    ]);
    let (mut pair, slot) = Pair::accepted();
    pair.host(Op::Data, 0, &[7; WINDOW as usize]);
    let mut buffer = [0; WINDOW as usize / 2 - 1];
    assert_eq!(
        pair.table.poll_read(slot, &mut buffer, &context()),
        Poll::Ready(Ok(buffer.len()))
    );
    assert_eq!(pair.headers(), []);
    assert!(pair.table.poll_read(slot, &mut [0], &context()).is_ready());
    let said = pair.headers();
    assert_eq!(said.len(), 1);
    assert_eq!({ said[0].0.fwd_cnt }, WINDOW / 2);
    assert_eq!({ said[0].0.buf_alloc }, WINDOW);
}

#[test]
fn no_more_is_sent_than_the_host_can_keep() {
    let (mut pair, slot) = Pair::accepted();
    let write = |pair: &mut Pair| pair.table.poll_write(slot, &[1; 700], &context());
    assert_eq!(write(&mut pair), Poll::Ready(Ok(700)));
    assert_eq!(write(&mut pair), Poll::Ready(Ok(300)));
    assert_eq!(write(&mut pair), Poll::Pending);
    pair.fwd_cnt = 10;
    pair.host(Op::CreditUpdate, 0, b"");
    assert_eq!(write(&mut pair), Poll::Ready(Ok(10)));
    let said = pair.says();
    assert_eq!(said.iter().map(|it| it.2.len()).sum::<usize>(), 1010);
}

#[test]
fn writers_wait_when_packets_have_all_the_memory_they_may() {
    let (mut pair, slot) = Pair::accepted();
    pair.buf_alloc = u32::MAX;
    pair.host(Op::CreditUpdate, 0, b"");
    let bytes = vec![9; 3 << 20];
    let Poll::Ready(Ok(first)) = pair.table.poll_write(slot, &bytes, &context()) else {
        panic!("nothing was taken");
    };
    assert!(first < 1 << 20);
    assert!(pair.table.poll_write(slot, &bytes, &context()).is_pending());
    assert!(pair.table.output().is_starved());
    assert_eq!(pair.says().len(), 16);
    assert!(!pair.table.output().is_starved());
    assert!(pair.table.poll_write(slot, &bytes, &context()).is_ready());
}

#[test]
fn who_is_not_listened_for_is_reset() {
    let mut pair = Pair::new();
    for local in [PORT.into(), 0, u32::MAX, 1 << 16] {
        pair.local = local;
        pair.host(Op::Request, 0, b"");
        assert_eq!(pair.says(), [(Op::Reset, 0, vec![])]);
    }
    for op in [
        Op::Response,
        Op::Data,
        Op::Shutdown,
        Op::CreditRequest,
        Op::Reset,
    ] {
        pair.host(op, 0, b"");
        assert_eq!(pair.says(), []);
    }
    assert_eq!(pair.table.len(), 0);
}

#[test]
fn a_port_has_one_listener_and_0_none() {
    let mut table = Table::new(WINDOW);
    assert_eq!(table.bind(0), Err(Error::InvalidPort));
    assert_eq!(table.bind(PORT), Ok(()));
    assert_eq!(table.bind(PORT), Err(Error::AddrInUse));
    table.unbind(PORT);
    assert_eq!(table.bind(PORT), Ok(()));
}

#[test]
fn a_backlog_is_bounded_and_reset_with_its_listener() {
    let mut pair = Pair::new();
    pair.table.bind(PORT).unwrap();
    for number in 0..BACKLOG_MAX as u32 + 1 {
        pair.peer = number;
        pair.host(Op::Request, 0, b"");
    }
    let said = pair.says();
    assert_eq!(said.len(), BACKLOG_MAX + 1);
    assert_eq!(said.last(), Some(&(Op::Reset, 0, vec![])));
    assert!(pair.accept().is_ready());
    pair.host(Op::Request, 0, b"");
    assert_eq!(pair.says(), [(Op::Response, 0, vec![])]);
    pair.table.unbind(PORT);
    assert_eq!(pair.says(), vec![(Op::Reset, 0, vec![]); BACKLOG_MAX]);
    // The one that was accepted.
    assert_eq!(pair.table.len(), 1);
}

#[test]
fn who_was_reset_before_it_was_accepted_leaves_its_place() {
    let mut pair = Pair::new();
    pair.table.bind(PORT).unwrap();
    pair.host(Op::Request, 0, b"");
    pair.host(Op::Reset, 0, b"");
    assert_eq!(pair.table.len(), 0);
    assert!(pair.accept().is_pending());
    // Who had said all it wanted is heard.
    pair.host(Op::Request, 0, b"");
    pair.host(Op::Data, 0, b"all");
    pair.host(Op::Shutdown, SHUTDOWN_SEND, b"");
    pair.host(Op::Reset, 0, b"");
    let Poll::Ready(Ok(slot)) = pair.accept() else {
        panic!("there is a connection to accept");
    };
    let mut buffer = [0; 8];
    let mut read = || pair.table.poll_read(slot, &mut buffer, &context());
    assert_eq!(read(), Poll::Ready(Ok(3)));
    assert_eq!(read(), Poll::Ready(Ok(0)));
}

#[test]
fn a_port_that_is_used_again_is_another_connection() {
    let (mut pair, old) = Pair::accepted();
    pair.host(Op::Data, 0, b"old");
    pair.host(Op::Request, 0, b"");
    let Poll::Ready(Ok(new)) = pair.accept() else {
        panic!("there is a connection to accept");
    };
    pair.host(Op::Data, 0, b"new");
    pair.says();
    pair.table.close(old);
    let mut buffer = [0; 8];
    assert_eq!(
        pair.table.poll_read(new, &mut buffer, &context()),
        Poll::Ready(Ok(3))
    );
    assert_eq!(&buffer[..3], b"new");
    assert_eq!(pair.says(), []);
}

/// As far as the host says, which is not believed to be more than it is.
#[test]
fn who_connects_is_known_by_what_is_behind_the_request() {
    for (client, more) in [
        ("198.51.100.1:49152", 0),
        ("[2001:db8::1]:1", 0),
        ("[2001:db8::1]:1", 7),
    ] {
        let client: SocketAddr = client.parse().unwrap();
        let endpoint = Endpoint::from(client);
        let said = [endpoint.as_bytes(), &vec![1; more]].concat();
        assert_eq!(peer_of(&said), client);
    }
    let nobody: SocketAddr = "[::]:0".parse().unwrap();
    for len in [0, 1, 19, 20] {
        assert_eq!(peer_of(&vec![0; len]), nobody, "{len}");
    }
}

/// Who has connected, when this is behind the request; nothing else comes of it.
fn peer_of(said: &[u8]) -> SocketAddr {
    let mut pair = Pair::new();
    pair.table.bind(PORT).unwrap();
    pair.host(Op::Request, 0, said);
    let Poll::Ready(Ok(slot)) = pair.accept() else {
        panic!("there is a connection to accept");
    };
    let told = pair.headers();
    assert_eq!({ told[0].0.fwd_cnt }, 0, "no byte of the stream");
    assert!(
        pair.table
            .poll_read(slot, &mut [0; 8], &context())
            .is_pending()
    );
    pair.table.peer(slot)
}

#[test]
fn a_connection_to_the_outside_is_asked_for_and_made() {
    let mut pair = Pair::new();
    let slot = pair.table.connect(OUTSIDE);
    assert_eq!(pair.table.peer(slot), OUTSIDE);
    assert!(pair.table.poll_connected(slot, &context()).is_pending());
    let asked = pair.headers();
    let (header, payload) = &asked[0];
    assert_eq!(
        (header.op, { header.dst_port }),
        (Op::Request.raw(), CONNECT_PORT)
    );
    assert_eq!(Endpoint::read_from_bytes(payload), Ok(OUTSIDE.into()));
    assert_eq!({ header.buf_alloc }, WINDOW);

    pair.peer = CONNECT_PORT;
    pair.local = header.src_port;
    pair.host(Op::Response, 0, b"");
    assert_eq!(
        pair.table.poll_connected(slot, &context()),
        Poll::Ready(Ok(()))
    );
    assert_eq!(
        pair.table.poll_write(slot, b"hello", &context()),
        Poll::Ready(Ok(5))
    );
    // The next has another port.
    pair.table.connect(OUTSIDE);
    let said = pair.headers();
    assert!(said.iter().any(|(it, _)| { it.src_port } != pair.local));
}

#[test]
fn a_refusal_says_why() {
    for refusal in (0..8).map(|raw| (raw, Refusal::from_raw(raw).unwrap_or(Refusal::Refused))) {
        let mut pair = Pair::new();
        let slot = pair.table.connect(OUTSIDE);
        pair.local = pair.headers()[0].0.src_port;
        pair.peer = CONNECT_PORT;
        pair.host(Op::Reset, refusal.0, b"");
        assert_eq!(
            pair.table.poll_connected(slot, &context()),
            Poll::Ready(Err(Error::Refused(refusal.1)))
        );
        pair.table.close(slot);
        assert_eq!((pair.says(), pair.table.len()), (vec![], 0));
    }
}

#[test]
fn who_gives_up_connecting_says_so() {
    let mut pair = Pair::new();
    let slot = pair.table.connect(OUTSIDE);
    pair.local = pair.headers()[0].0.src_port;
    pair.peer = CONNECT_PORT;
    pair.table.close(slot);
    assert_eq!(pair.says(), [(Op::Reset, 0, vec![])]);
    pair.host(Op::Response, 0, b"");
    assert_eq!((pair.says(), pair.table.len()), (vec![], 0));
}

/// What may happen at random.
#[derive(Clone, Debug)]
enum Event {
    Host(u16, u32, u32, u16),
    Read(usize),
    Write(usize),
    Shut(u32),
    Abort,
    Close,
    Accept,
    Settle,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..9_u16, 0..4_u32, 0..3_u32, 0..1500_u16)
            .prop_map(|(op, flags, peer, len)| Event::Host(op, flags, peer, len)),
        2 => (0..1500_usize).prop_map(Event::Read),
        2 => (0..1500_usize).prop_map(Event::Write),
        1 => (0..4_u32).prop_map(Event::Shut),
        1 => Just(Event::Abort),
        1 => Just(Event::Close),
        2 => Just(Event::Accept),
        2 => Just(Event::Settle),
    ]
}

proptest! {
    /// Whatever comes, nothing panics, nothing follows a reset, and once all streams are
    /// closed and the host is done, nothing is left.
    #[test]
    fn any_conversation_leaves_nothing_behind(events in proptest::collection::vec(event(), 0..200)) {
        let mut pair = Pair::new();
        pair.table.bind(PORT).unwrap();
        let mut streams = Vec::new();
        for event in events {
            let last = streams.last().copied();
            match (event, last) {
                (Event::Host(op, flags, peer, len), _) => {
                    pair.peer = peer;
                    let payload = vec![1; len.into()];
                    match Op::from_raw(op) {
                        Some(op) => pair.host(op, flags, &payload),
                        None => pair.table.hear(&Header { op, ..Header::default() }, &payload),
                    }
                }
                (Event::Read(len), Some(slot)) => {
                    let _ = pair.table.poll_read(slot, &mut vec![0; len], &context());
                }
                (Event::Write(len), Some(slot)) => {
                    let _ = pair.table.poll_write(slot, &vec![2; len], &context());
                }
                (Event::Shut(directions), Some(slot)) => pair.table.shutdown(slot, directions),
                (Event::Abort, Some(slot)) => pair.table.abort(slot),
                (Event::Close, Some(slot)) => {
                    pair.table.close(slot);
                    streams.pop();
                }
                (Event::Accept, _) => {
                    if let Poll::Ready(Ok(slot)) = pair.accept() {
                        streams.push(slot);
                    }
                }
                (Event::Settle, _) => {
                    pair.says();
                }
                (_, None) => {}
            }
        }
        for slot in streams {
            pair.table.close(slot);
        }
        pair.table.unbind(PORT);
        for peer in 0..3 {
            pair.peer = peer;
            pair.host(Op::Reset, 0, b"");
        }
        prop_assert_eq!(pair.table.len(), 0);
    }

    /// A host that keeps its word gets every byte once and in order, however the two
    /// take turns.
    #[test]
    fn bytes_arrive_in_order_within_the_credit(
        window in 1_u32..10_000,
        turns in proptest::collection::vec((1_usize..20_000, 0_u32..10_000), 1..40),
    ) {
        let (mut pair, slot) = Pair::accepted();
        pair.buf_alloc = window;
        pair.host(Op::CreditUpdate, 0, b"");
        let (mut written, mut arrived) = (0_usize, 0_usize);
        for (len, forwarded) in turns {
            let bytes: Vec<u8> = (written..written + len).map(|at| (at % 251) as u8).collect();
            if let Poll::Ready(count) = pair.table.poll_write(slot, &bytes, &context()) {
                written += count.unwrap();
            }
            for (op, _, payload) in pair.says() {
                prop_assert_eq!(op, Op::Data);
                for byte in payload {
                    prop_assert_eq!(usize::from(byte), arrived % 251);
                    arrived += 1;
                }
            }
            prop_assert_eq!(arrived, written);
            let unread = arrived as u32 - pair.fwd_cnt;
            prop_assert!(unread <= window);
            pair.fwd_cnt += forwarded.min(unread);
            pair.host(Op::CreditUpdate, 0, b"");
        }
    }
}
