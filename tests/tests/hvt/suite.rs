//! Solo5's own tests, for who has built them: `HVT_SUITE=DIR` names a directory with
//! `test_*.hvt` in it, or with a directory for each as in Solo5's tree. Nothing of theirs
//! is here but their names, and how each has to end.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use wharf_tests::command::{output, wharf, wharf_path};
use wharf_tests::guest::kvm;
use wharf_tests::tap::{TAP, ip, make_tap, with_tap};

/// How a test ends: the guest's own status, or that of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Success = 0,
    Failure = 1,
    Refused = 125,
    Abort = 255,
}
use Verdict::{Abort, Failure, Refused, Success};

/// What a test is given.
#[derive(Clone, Copy, Debug)]
enum Given {
    Nothing,
    /// A disk of 4 MiB.
    Disk,
    /// As many disks as there can be, of 4 KiB.
    Disks,
    /// A tap interface with this MTU.
    Mtu(u16),
    /// Interfaces, with addresses, that somebody is pinged on all the time.
    Pings(&'static [Ipv4Addr]),
}
use Given::{Disk, Disks, Mtu, Nothing, Pings};

/// Where the tests answer.
const GUESTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 1, 0, 2)];

/// A test, its arguments, what it is given, how it ends, and what it says then.
type Case = (
    &'static str,
    &'static [&'static str],
    Given,
    Verdict,
    &'static str,
);

/// All of Solo5 0.12.1's that are for hvt. Where they end otherwise than there, it is said
/// why.
#[rustfmt::skip]
const CASES: &[Case] = &[
    ("test_hello", &["Hello_Solo5"], Nothing, Success, "SUCCESS"),
    ("test_quiet", &["--solo5:quiet"], Nothing, Success, "SUCCESS"),
    ("test_output", &["Output_Solo5"], Nothing, Success, ""),
    ("test_globals", &[], Nothing, Success, "SUCCESS"),
    ("test_fpu", &[], Nothing, Success, "SUCCESS"),
    ("test_tls", &[], Nothing, Success, "SUCCESS"),
    ("test_time", &[], Nothing, Success, "SUCCESS"),
    ("test_exception", &[], Nothing, Abort, "ABORT"),
    ("test_zeropage", &[], Nothing, Abort, "ABORT"),
    ("test_notls", &[], Nothing, Abort, "ABORT"),
    ("test_ssp", &[], Nothing, Abort, "ABORT"),
    // Solo5's tender writes a core file besides.
    ("test_dumpcore", &[], Nothing, Abort, "solo5_abort() called"),
    // Solo5's tender ends with 1 and a word of its own; here the guest is told.
    ("test_xnow", &[], Nothing, Abort, "ABORT"),
    ("test_rnow", &[], Nothing, Abort, "ABORT"),
    // It does not notice these on Linux.
    ("test_rnox", &[], Nothing, Abort, "ABORT"),
    ("test_wnox", &[], Nothing, Abort, "ABORT"),
    // Nor this one, and nor does anybody where pages cannot be executed and not read.
    ("test_xnor", &[], Nothing, Failure, "FAILURE"),
    ("buggyelf", &[], Nothing, Refused, "is refused"),
    ("test_blk", &[], Disk, Success, "SUCCESS"),
    ("test_mft_maxdevices", &[], Disks, Success, "SUCCESS"),
    // Wants 9,000: no frame is longer than 1,514 bytes here.
    ("test_net_mtu", &[], Mtu(9000), Success, "MTU is 1500"),
    ("test_net_mtu", &[], Mtu(1280), Success, "MTU is 1280"),
    ("test_net", &["limit"], Pings(&[GUESTS[0]]), Success, "SUCCESS"),
    ("test_net_2if", &["limit"], Pings(&GUESTS), Success, "SUCCESS"),
    ("test_net_ring", &[], Pings(&[GUESTS[0]]), Success, "SUCCESS"),
];

fn say(line: &str) {
    // Not `eprintln!`, which the test harness swallows when the test passes.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The tests of a directory, by name.
fn images(directory: &Path) -> BTreeMap<String, PathBuf> {
    let entries = |of: &Path| fs::read_dir(of).into_iter().flatten().flatten();
    let below = entries(directory).flat_map(|it| entries(&it.path()).collect::<Vec<_>>());
    let files = entries(directory).chain(below).map(|it| it.path());
    let images = files.filter(|it| it.extension().is_some_and(|it| it == "hvt"));
    images
        .map(|it| (it.file_stem().unwrap().to_string_lossy().into_owned(), it))
        .collect()
}

/// An echo request of the pattern that one of the tests looks for.
fn echo_request() -> Vec<u8> {
    let mut packet = [
        &[8, 0, 0, 0, 0, 7, 0, 1][..],
        &[0xDE, 0xAD, 0xBE, 0xEF].repeat(14),
    ]
    .concat();
    let words = packet.chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (sum & 0xFFFF) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xFFFF) + (folded >> 16)).unwrap();
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Pings an address, the next time when the answer is there or is not to come.
fn ping(socket: &Socket, to: Ipv4Addr, is_over: &AtomicBool) {
    let request = echo_request();
    let to = SocketAddrV4::new(to, 0).into();
    let mut answer = [0; 256];
    while !is_over.load(Ordering::Relaxed) {
        // Nobody may be there yet.
        if socket.send_to(&request, &to).is_err() {
            thread::yield_now();
        }
        let mut socket = socket;
        let _ = socket.read(&mut answer);
    }
}

/// Runs a test; what it ended with and said.
fn run(image: &Path, args: &[&str], given: Given, directory: &Path) -> (i32, String) {
    let mut command = wharf(["run", "--timeout", "120s", "--memory", "512MiB"]);
    let mut disk = |device: &str, bytes: u64| {
        let file = directory.join(device);
        fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        let block = format!("{device}={}", file.display());
        command.args(["--block", &block]);
    };
    let mut pings: &[Ipv4Addr] = &[];
    match given {
        Nothing => {}
        Disk => disk("storage", 4 << 20),
        Disks => (0..63).for_each(|n| disk(&format!("storage{n}"), 4096)),
        Mtu(mtu) => {
            ip(&format!("link set {TAP} mtu {mtu}"));
            command.args(["--net", &format!("service0={TAP}")]);
        }
        Pings(to) => {
            ip(&format!("link set {TAP} mtu 1500"));
            pings = to;
            for (n, tap) in [TAP, "tap1"].iter().enumerate().take(to.len()) {
                command.args(["--net", &format!("service{n}={tap}")]);
            }
        }
    }
    command.arg(image).arg("--").args(args);
    let is_over = AtomicBool::new(false);
    // A socket is of the network that its thread is in.
    let sockets: Vec<Socket> = pings
        .iter()
        .map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(10)))
                .unwrap();
            socket
        })
        .collect();
    let printed = thread::scope(|scope| {
        for (socket, to) in sockets.iter().zip(pings) {
            scope.spawn(|| ping(socket, *to, &is_over));
        }
        let printed = output(&mut command);
        is_over.store(true, Ordering::Relaxed);
        printed
    });
    (printed.status, printed.stdout + &printed.stderr)
}

/// Runs those cases whose tests are there; what is wrong with them.
fn try_all<'a>(
    images: &BTreeMap<String, PathBuf>,
    cases: impl Iterator<Item = &'a Case>,
) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (name, args, given, verdict, says) in cases {
        let Some(image) = images.get(*name) else {
            say(&format!("SKIPPED: there is no {name}.hvt"));
            continue;
        };
        let start = Instant::now();
        let (status, said) = run(image, args, *given, directory.path());
        let is_quiet = *name != "test_quiet" || !said.contains("Solo5:");
        let is_right = status == *verdict as i32 && said.contains(says) && is_quiet;
        let mark = if is_right { "as it should" } else { "WRONG" };
        let took = start.elapsed().as_millis();
        say(&format!(
            "{name}: {verdict:?}, ends with {status} after {took} ms: {mark}"
        ));
        if !is_right {
            wrong.push(format!(
                "{name}: {status}, not {verdict:?} and {says:?}: {said}"
            ));
        }
    }
    wrong
}

#[test]
fn solo5s_own_tests_end_as_they_should() {
    let Some(directory) = env::var_os("HVT_SUITE") else {
        say("SKIPPED: HVT_SUITE names no directory with Solo5's tests");
        return;
    };
    if kvm().is_none() {
        return;
    }
    // Whose time is not the first test's.
    let _ = wharf_path();
    let images = images(Path::new(&directory));
    let known = |name: &String| CASES.iter().any(|(it, ..)| it == name);
    assert!(images.keys().any(known), "{directory:?} has tests in it");
    for unknown in images.keys().filter(|name| !known(name)) {
        say(&format!(
            "SKIPPED: nobody knows how {unknown}.hvt has to end"
        ));
    }
    let needs_tap = |case: &&Case| matches!(case.2, Mtu(_) | Pings(_));
    let mut wrong = try_all(&images, CASES.iter().filter(|case| !needs_tap(case)));
    with_tap(|| {
        make_tap("tap1");
        ip("address add 10.1.0.1/24 dev tap1");
        wrong.extend(try_all(&images, CASES.iter().filter(needs_tap)));
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
