//! Tap interfaces, as operators have them: real ones in a network of each test's own, with
//! the kernel's network at their other end.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use wharf_machine::Tun;
use wharf_tests::command::{Printed, app, output, policy, wharf};
use wharf_tests::frames::{deaf, flooder};
use wharf_tests::guest::kvm;
use wharf_tests::host::{Host, Object, poll};
use wharf_tests::process::cpu_ticks;
use wharf_tests::tap::{TAP, arrived, ip, make_tap, with_tap};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// A task of that image that is on a tap interface, or with none on the switch.
fn task(name: &str, image: &Path, tap: Option<&str>, lines: &str) -> String {
    let tap = tap.map(|tap| format!("tap = {tap:?}\n"));
    let tap = tap.unwrap_or_default();
    format!(
        "[[task]]\nname = {name:?}\nimage = {image:?}\n{lines}\n\
         [[task.net]]\ndevice = \"lan\"\n{tap}"
    )
}

/// A task that answers pings on [`TAP`].
fn answering(ping: &Path) -> String {
    let args = format!("args = [\"{GUEST}/24\", \"10.0.0.1\", \"0\"]");
    task("web", ping, Some(TAP), &args)
}

/// An image that a test made.
fn made(directory: &Path, name: &str, elf: &[u8]) -> PathBuf {
    let image = directory.join(format!("{name}.elf"));
    fs::write(&image, elf).unwrap();
    image
}

/// The Internet checksum (RFC 1071): 0 of bytes that have their own among them.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(word(pair))).sum();
    let folded = (sum & 0xFFFF) + (sum >> 16);
    !u16::try_from((folded & 0xFFFF) + (folded >> 16)).unwrap()
}

/// Pings the guest from this machine.
struct Pinger(Socket);

impl Pinger {
    fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
        let patience = Some(Duration::from_millis(500));
        socket.set_read_timeout(patience).unwrap();
        Self(socket)
    }

    /// What comes back for these bytes, if anything does.
    fn ask(&self, data: &[u8]) -> Option<Vec<u8>> {
        let number = u16::try_from(data.len()).unwrap().to_be_bytes();
        let mut request = [&[8, 0, 0, 0, 0, 7][..], &number, data].concat();
        let sum = checksum(&request).to_be_bytes();
        request[2..4].copy_from_slice(&sum);
        let to = SocketAddrV4::new(GUEST, 0).into();
        // Nobody may be there yet.
        self.0.send_to(&request, &to).ok()?;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            let mut bytes = [0; 4000];
            let len = (&self.0).read(&mut bytes).ok()?;
            // Behind an IP header without options.
            let packet = &bytes[20..len];
            if packet[0] == 0 && packet[4..8] == request[4..8] {
                assert_eq!(checksum(packet), 0);
                return Some(packet[8..].to_vec());
            }
        }
        None
    }

    /// Waits until these bytes come back.
    fn until_answered(&self, data: &[u8]) {
        let answer = poll(|| self.ask(data)).expect("the guest answers");
        assert!(answer == data, "{} bytes", data.len());
    }
}

#[test]
fn bytes_go_both_ways_between_a_guest_and_the_machine() {
    let Some(_) = kvm() else { return };
    let ping = app("ping");
    with_tap(|| {
        let directory = tempfile::tempdir().unwrap();
        let host = Host::up(directory.path(), &answering(&ping));
        let pinger = Pinger::new();
        for len in [0_usize, 1, 56, 500, 1471, 1472] {
            let data: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
            pinger.until_answered(&data);
        }
        // The next life takes the interface from the one before.
        let _ = host.ask(&["restart", "web"]);
        host.until_task("web.0", |it| it.number("generation") == 2);
        pinger.until_answered(b"again");
        let web = host.task("web.0");
        assert_eq!(web.number("sent_frames_dropped"), 0, "{web:?}");
        drop(host);

        let mut run = wharf(["run", "--timeout", "60s", "--net", "lan=tap0"]);
        run.arg(&ping).args(["--", "10.0.0.2/24", "10.0.0.1", "5"]);
        let printed = output(&mut run);
        assert_eq!(printed.status, 0, "{printed:?}");
        assert!(printed.stdout.contains("5 of 5 answered"), "{printed:?}");
    });
}

/// With the host, the interface goes to another process, with what has arrived there.
#[test]
fn an_interface_goes_along_when_the_host_is_handed_over() {
    let Some(_) = kvm() else { return };
    let ping = app("ping");
    with_tap(|| {
        let directory = tempfile::tempdir().unwrap();
        let host = Host::up(directory.path(), &answering(&ping));
        let pinger = Pinger::new();
        pinger.until_answered(b"one");
        for round in 0..3_u8 {
            let _ = host.ask(&["handover"]);
            pinger.until_answered(&[round; 500]);
        }
        let web = host.task("web.0");
        assert_eq!((web.number("restarts"), web.number("generation")), (0, 1));
        assert_eq!(web.number("sent_frames_dropped"), 0, "{web:?}");
        // It is the host's to take again.
        let _ = host.ask(&["restart", "web"]);
        host.until_task("web.0", |it| it.number("generation") == 2);
        pinger.until_answered(b"again");
    });
}

/// Every way in which an interface cannot be had: one line with task, device and way out.
#[test]
fn each_refusal_names_task_device_and_way_out() {
    let Some(_) = kvm() else { return };
    let ping = app("ping");
    with_tap(|| {
        make_tap("down0");
        ip("link set down0 down");
        make_tap("busy0");
        let busy = Tun::open().unwrap();
        busy.attach("busy0").unwrap();
        ip("tuntap add dev other0 mode tap user 12345");
        ip("tuntap add dev tun0 mode tun");
        let no_tap = |name: &str| {
            format!(
                "device \"lan\": {name} is no tap interface, or one of several queues: name one \
                 that `ip tuntap add dev NAME mode tap` made"
            )
        };
        let cases = [
            (
                "lan=none0",
                "device \"lan\": there is no interface none0: make it with `ip tuntap add dev \
                 none0 mode tap`, or name another"
                    .to_owned(),
            ),
            ("lan=lo", no_tap("lo")),
            ("lan=tun0", no_tap("tun0")),
            (
                "lan=down0",
                "device \"lan\": tap interface down0 is down: bring it up with `ip link set down0 \
                 up`"
                .to_owned(),
            ),
            (
                "lan=busy0",
                "device \"lan\": tap interface busy0 is in use: end who uses it, or name another"
                    .to_owned(),
            ),
            (
                "lan=other0",
                "device \"lan\": tap interface other0 is another user's: make it with `ip tuntap \
                 add dev other0 mode tap user USER`, or name another"
                    .to_owned(),
            ),
            (
                "wan=tap0",
                "net device \"wan\" is configured, and image ping does not declare it (it \
                 declares lan): take it out, or correct its name"
                    .to_owned(),
            ),
            (
                "wan=switch",
                "net device \"wan\" is configured, and image ping does not declare it (it \
                 declares lan): take it out, or correct its name"
                    .to_owned(),
            ),
        ];
        let directory = tempfile::tempdir().unwrap();
        for (net, told) in cases {
            let told = format!("wharf: task it: {told}\n");
            let mut run = wharf(["run", "--name", "it", "--net", net]);
            let printed = unprivileged(run.arg(&ping));
            let refused = (printed.status, printed.stderr);
            assert_eq!(refused, (125, told.clone()), "{net}");

            let (device, tap) = net.split_once('=').unwrap();
            let tap = (tap != "switch").then_some(tap);
            let toml = task("it", &ping, tap, "").replace("\"lan\"", &format!("{device:?}"));
            let host = Host::new(directory.path(), &toml);
            let printed = unprivileged(&host.up_command(&[]));
            assert_eq!((printed.status, printed.stderr), (125, told), "{toml}");
        }
        let links = ip("link show");
        assert!(!links.contains("none0"), "nothing is made: {links}");
    });
}

/// Runs a command that may not do as it likes with the network, though it is root's.
fn unprivileged(command: &Command) -> Printed {
    let mut without = Command::new("setpriv");
    without
        .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"])
        .arg(command.get_program())
        .args(command.get_args());
    output(&mut without)
}

#[test]
fn what_is_no_wire_is_bad_usage() {
    let form = "write NAME=IFACE, or NAME=switch";
    for (net, told) in [
        ("lan", form),
        ("lan=", form),
        ("lan=a/b", "\"a/b\" is no interface's name"),
        ("lan=a b", "\"a b\" is no interface's name"),
        ("lan=tap%d", "\"tap%d\" is no interface's name"),
        ("lan=..", "\"..\" is no interface's name"),
        ("lan=a234567890123456", "is no interface's name"),
        ("=tap0", "\"\" is no name"),
        ("a b=tap0", "\"a b\" is no name"),
    ] {
        let printed = output(&mut wharf(["run", "--net", net, "none.elf"]));
        assert_eq!(printed.status, 2, "{net}");
        assert!(printed.stderr.contains(told), "{net}: {}", printed.stderr);
    }
    let twice = ["run", "--net", "a=switch", "--net", "a=tap0"];
    let printed = output(wharf(twice).arg(app("hello")));
    let told = "wharf: --net says twice what a is: say it once\n";
    assert_eq!((printed.status, printed.stderr.as_str()), (125, told));
}

/// A router has the choice between the interface and the switch.
#[test]
fn a_router_chooses_the_wire() {
    let Some(_) = kvm() else { return };
    let (ping, plugin) = (app("ping"), policy("static-routes"));
    with_tap(|| {
        let directory = tempfile::tempdir().unwrap();
        let args = |own: u8, peer: u8, count: u8| {
            format!(
                "restart = \"never\"\n\
                 args = [\"10.0.0.{own}/24\", \"10.0.0.{peer}\", \"{count}\"]"
            )
        };
        let toml = format!(
            "[policy.router]\nplugin = {plugin:?}\nconfig = {{ \"device-lan@a\" = \"switch\", \
             \"device-lan@c\" = \"tap1\" }}\n"
        ) + &task("a", &ping, Some(TAP), &args(5, 6, 0))
            + &task("b", &ping, None, &args(6, 5, 3))
            + &task("c", &ping, None, &args(7, 5, 0));
        let host = Host::up(directory.path(), &toml);
        let b = host.until_task("b.0", |it| it.state() == "stopped");
        assert_eq!(b.number("exit_status"), 0, "{}", host.ask(&["logs", "b"]));
        let c = host.until_event("c.0", "start-failed", 0);
        let told = "task c: device \"lan\" is denied by the router: its device lan is to get the \
                    back end tap1, which it does not have";
        assert_eq!(c.text("detail"), told);
        assert_eq!(arrived(TAP), 0);
    });
}

/// Down, up again, and gone: what is sent is dropped and counted, and nobody ends.
#[test]
fn an_interface_that_goes_away_takes_nobody_with_it() {
    let Some(_) = kvm() else { return };
    with_tap(|| {
        let directory = tempfile::tempdir().unwrap();
        let image = made(directory.path(), "flood", &flooder(None));
        let host = Host::up(directory.path(), &task("flood", &image, Some(TAP), ""));
        let until_arrived = |frames: u64| {
            host.until("frames", || (arrived(TAP) > frames).then_some(()));
        };
        let until_dropped = |frames: u64| {
            let dropped = |it: &Object| it.number("sent_frames_dropped");
            dropped(&host.until_task("flood.0", |it| dropped(it) > frames))
        };
        until_arrived(1000);
        assert_eq!(host.task("flood.0").number("sent_frames_dropped"), 0);
        ip("link set tap0 down");
        until_dropped(1000);
        ip("link set tap0 up");
        until_arrived(arrived(TAP) + 1000);
        ip("link delete tap0");
        let dropped = host.task("flood.0").number("sent_frames_dropped");
        until_dropped(dropped + 1000);
        let flood = host.task("flood.0");
        assert_eq!(flood.number("generation"), 1, "{flood:?}");
        assert_ne!(flood.state(), "faulted", "{flood:?}");
        let said = host.said();
        assert_eq!(
            said.matches("tap interface tap0 is gone").count(),
            1,
            "{said}"
        );
    });
}

/// What a guest does not take is the kernel's to keep and to drop.
#[test]
fn a_guest_that_does_not_listen_keeps_nobody_busy() {
    let Some(_) = kvm() else { return };
    with_tap(|| {
        let directory = tempfile::tempdir().unwrap();
        let image = made(directory.path(), "deaf", &deaf());
        let host = Host::up(directory.path(), &task("deaf", &image, Some(TAP), ""));
        host.until_task("deaf.0", |it| it.state() == "waiting");
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        socket.set_broadcast(true).unwrap();
        for _ in 0..5000 {
            socket.send_to(&[7; 100], "10.0.0.255:9").unwrap();
        }
        let dropped = |it: &Object| it.number("received_frames_dropped");
        let deaf = host.until_task("deaf.0", |it| dropped(it) > 1000);
        is_quiet(&host);
        ip("link delete tap0");
        is_quiet(&host);
        let later = host.until_task("deaf.0", |it| it.state() == "waiting");
        assert!(dropped(&later) >= dropped(&deaf), "{later:?}");
        assert_eq!(later.number("generation"), 1);
    });
}

/// In a second the host uses next to nothing.
fn is_quiet(host: &Host) {
    host.until_task("deaf.0", |it| it.state() == "waiting");
    let pid = host.pid().unwrap();
    let before = cpu_ticks(pid);
    sleep(Duration::from_secs(1));
    let ticks = cpu_ticks(pid) - before;
    // A second of looking again and again would be a hundred.
    assert!(ticks < 20, "{ticks} ticks of 10 ms");
}

#[test]
fn a_frame_that_is_too_long_is_dropped_and_those_after_it_arrive() {
    let Some(_) = kvm() else { return };
    let ping = app("ping");
    with_tap(|| {
        ip("link set tap0 mtu 9000");
        let directory = tempfile::tempdir().unwrap();
        let host = Host::up(directory.path(), &answering(&ping));
        let pinger = Pinger::new();
        pinger.until_answered(b"short");
        for len in [1473, 3000] {
            assert_eq!(pinger.ask(&vec![1; len]), None);
        }
        host.until_task("web.0", |it| it.number("received_frames_dropped") == 2);
        pinger.until_answered(&[1; 1472]);
    });
}

#[test]
fn who_speaks_for_another_is_not_heard() {
    let Some(_) = kvm() else { return };
    with_tap(|| {
        let directory = tempfile::tempdir().unwrap();
        let image = made(directory.path(), "liar", &flooder(Some(1)));
        let host = Host::up(directory.path(), &task("liar", &image, Some(TAP), ""));
        host.until_task("liar.0", |it| it.number("sent_frames_dropped") > 1000);
        assert_eq!(arrived(TAP), 0);
    });
}

/// Leaves an interface as a machine monitor does that finishes checksums itself.
const CHECKSUMS_OFF: &str = "
import fcntl, os, struct
tun = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', b'tap0', 0x5002))
fcntl.ioctl(tun, 0x400454d0, 1)
";

#[test]
fn what_an_earlier_user_finished_itself_the_kernel_finishes_again() {
    with_tap(|| {
        let printed = output(Command::new("python3").args(["-c", CHECKSUMS_OFF]));
        assert_eq!((printed.status, printed.stderr.as_str()), (0, ""));
        let tun = Tun::open().unwrap();
        tun.attach(TAP).unwrap();
        ip("neighbour add 10.0.0.2 lladdr 02:00:00:00:00:02 dev tap0");
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        let frame = poll(|| {
            // The interface may not have noticed yet that it has an other end.
            socket.send_to(&[7; 101], (GUEST, 9)).unwrap();
            let mut frame = [0; 2000];
            let len = tun.receive(&mut frame).ok()?;
            let is_ours = frame[12..14] == [8, 0] && frame[23] == 17;
            is_ours.then(|| frame[..len].to_vec())
        });
        let frame = frame.expect("a datagram arrives");
        let (addresses, datagram) = (&frame[26..34], &frame[34..]);
        let len = u16::try_from(datagram.len()).unwrap().to_be_bytes();
        let pseudo = [addresses, &[0, 17], &len, datagram].concat();
        assert_eq!(checksum(&pseudo), 0);
        assert!(datagram.ends_with(&[7; 101]));
    });
}
