//! Streams: a service in a guest beside the same one as a process.
//!
//! `cargo bench --bench stream` prints ratios, taken in turn in one run over the
//! loopback interface, with the goal of each; `-- http bytes lone many` chooses. The
//! load of `http` is made by `wrk`, which has to be installed. Nothing here fails on
//! a slow machine.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use wharf_tests::bench::{alternate, measure, median, percentile, row};
use wharf_tests::command::app;
use wharf_tests::guest::kvm;
use wharf_tests::host::{Host, poll};
use wharf_tests::net::port;
use wharf_tests::process::{memory_kib, open_files};

const ROUNDS: usize = 5;
const CONNECTIONS: u32 = 64;
const GREETING: &str = "Hello from wharf!";

fn main() {
    if kvm().is_none() {
        return;
    }
    let figures: [(&str, &dyn Fn()); 4] = [
        ("http", &http),
        ("bytes", &bytes),
        ("lone", &lone),
        ("many", &many),
    ];
    measure(&figures);
}

/// A host with one task, and the port that leads to it.
fn guest(app_name: &str, args: &[&str], guest_port: u16) -> (Host, u16, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let toml = format!(
        "[host]\nworkers = 1\n[[task]]\nname = \"it\"\nimage = {:?}\nargs = {args:?}\n\
         publish = [\"{at}:{guest_port}\"]\n",
        app(app_name)
    );
    let host = Host::up(directory.path(), &toml);
    let there = poll(|| TcpStream::connect(("127.0.0.1", at)).ok());
    assert!(there.is_some());
    (host, at, directory)
}

/// The same service as a process.
struct Native(Child, u16);

impl Native {
    fn start() -> Self {
        let at = port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_native_http"));
        let child = command.arg(at.to_string()).spawn().unwrap();
        let there = poll(|| TcpStream::connect(("127.0.0.1", at)).ok());
        assert!(there.is_some());
        Self(child, at)
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What wrk measured.
#[derive(Clone, Copy)]
struct Load {
    requests_per_second: f64,
    p99_us: f64,
    requests: f64,
}

fn wrk(port: u16) -> Option<Load> {
    let script = tempfile::NamedTempFile::new().unwrap();
    // Numbers for programs, instead of wrk's own table for people.
    let lua = "done = function(summary, latency, requests)\n\
               io.stderr:write(summary.requests, ' ', summary.duration, ' ',\n\
               latency:percentile(99.0), ' ', summary.errors.status + summary.errors.read\n\
               + summary.errors.write + summary.errors.connect + summary.errors.timeout)\nend\n";
    fs::write(script.path(), lua).unwrap();
    let output = Command::new("wrk")
        .args(["-t1", "-d3s", "-c"])
        .arg(CONNECTIONS.to_string())
        .arg("-s")
        .arg(script.path())
        .arg(format!("http://127.0.0.1:{port}/"))
        .stdout(Stdio::null())
        .output()
        .ok()?;
    let said = String::from_utf8(output.stderr).unwrap();
    let numbers: Vec<f64> = said.split(' ').map(|it| it.parse().unwrap()).collect();
    let [requests, duration_us, p99_us, errors] = numbers[..] else {
        panic!("wrk said {said}");
    };
    assert!(errors == 0.0, "{errors} requests failed");
    Some(Load {
        requests_per_second: requests / duration_us * 1e6,
        p99_us,
        requests,
    })
}

/// Requests over 64 connections that are kept alive.
fn http() {
    let (host, at, _directory) = guest("http", &["--greeting", GREETING], 80);
    let native = Native::start();
    if wrk(at).is_none() {
        println!("http: `wrk` is not installed: apt-get install wrk");
        return;
    }
    let exits = || host.task("it.0").number("exits") as f64;
    let (mut ours, mut theirs, mut exits_each) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        theirs.extend(wrk(native.1));
        let before = exits();
        let load = wrk(at).unwrap();
        exits_each.push((exits() - before) / load.requests);
        ours.push(load);
    }
    for (what, figure, goal) in [
        (
            "requests per second",
            (|it| it.requests_per_second) as fn(&Load) -> f64,
            ">= 0.35",
        ),
        ("p99 in us", |it| it.p99_us, "<= 5"),
    ] {
        let of = |loads: &[Load]| median(loads.iter().map(figure).collect());
        let (ours, theirs) = (of(&ours), of(&theirs));
        row(
            &format!("http, {CONNECTIONS} connections, {what}"),
            &format!("{ours:.0}"),
            &format!("{theirs:.0}"),
            ours / theirs,
            goal,
        );
    }
    let exits = median(exits_each);
    row(
        "exits per request",
        &format!("{exits:.3}"),
        "-",
        exits / 0.2,
        "<= 0.2",
    );
}

const BLOCK: usize = 1 << 20;
const STRETCH: Duration = Duration::from_secs(2);

/// Bytes that a connection gives or takes in a second, in blocks of a mebibyte.
fn rate(port: u16, mut step: impl FnMut(&mut TcpStream, &mut [u8]) -> usize) -> f64 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut block = vec![7; BLOCK];
    // The first bytes fill buffers, and touch memory.
    for _ in 0..32 {
        step(&mut stream, &mut block);
    }
    let (start, mut moved) = (Instant::now(), 0);
    while start.elapsed() < STRETCH {
        moved += step(&mut stream, &mut block);
    }
    moved as f64 / start.elapsed().as_secs_f64()
}

/// A listener whose only connection is served so, on a thread.
fn native_peer(serve: impl Fn(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            serve(stream);
        }
    });
    at
}

/// One connection, as fast as it goes, each way.
fn bytes() {
    let take = |stream: &mut TcpStream, block: &mut [u8]| stream.read(block).unwrap();
    let give = |stream: &mut TcpStream, block: &mut [u8]| {
        stream.write_all(block).unwrap();
        block.len()
    };
    let (_chargen, from, _one) = guest("streamload", &["chargen"], 19);
    let (_discard, to, _two) = guest("streamload", &["discard"], 9);
    let native_from = native_peer(|mut stream| {
        let block = vec![7; 26 << 10];
        while stream.write_all(&block).is_ok() {}
    });
    let native_to = native_peer(|mut stream| {
        let mut block = vec![0; 64 << 10];
        while stream.read(&mut block).is_ok_and(|count| count > 0) {}
    });
    let (native, ours) = alternate(ROUNDS, || rate(native_from, take), || rate(from, take));
    print_rate("bytes from a guest", ours, native);
    let (native, ours) = alternate(ROUNDS, || rate(native_to, give), || rate(to, give));
    print_rate("bytes to a guest", ours, native);
}

fn print_rate(what: &str, ours: f64, theirs: f64) {
    let gb = |rate: f64| format!("{:.2} GB/s", rate / 1e9);
    row(
        what,
        &gb(ours),
        &gb(theirs),
        ours / theirs,
        ">= 1 GB/s or 0.4",
    );
}

/// One request after the other over one connection.
fn lone() {
    const REQUESTS: usize = 3_000;
    let (_host, at, _directory) = guest("http", &["--greeting", GREETING], 80);
    let native = Native::start();
    let p50 = |port: u16| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut answer = [0; 1024];
        let mut times = Vec::with_capacity(REQUESTS);
        for _ in 0..REQUESTS {
            let start = Instant::now();
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: it\r\n\r\n")
                .unwrap();
            let mut len = 0;
            while !answer[..len].ends_with(GREETING.as_bytes()) {
                len += stream.read(&mut answer[len..]).unwrap();
            }
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        percentile(times, 50)
    };
    let (theirs, ours) = alternate(ROUNDS, || p50(native.1), || p50(at));
    row(
        "one request at a time, p50 in us",
        &format!("{ours:.0}"),
        &format!("{theirs:.0}"),
        ours / theirs,
        "<= native + 4 exits",
    );
}

/// What a hundred thousand connections leave behind.
fn many() {
    const COUNT: u64 = 100_000;
    let (host, at, _directory) = guest("echo", &[], 7);
    let pid = host.pid().unwrap();
    let turn = |count: u64| {
        for _ in 0..count {
            let mut stream = TcpStream::connect(("127.0.0.1", at)).unwrap();
            stream.write_all(b"x").unwrap();
            let mut byte = [0; 1];
            stream.read_exact(&mut byte).unwrap();
        }
        host.until_task("it.0", |it| it.number("connections") == 0);
    };
    // Port numbers of this machine run out when a client closes first and waits.
    turn(2_000);
    let before = (open_files(pid), memory_kib(pid, "VmRSS"));
    let start = Instant::now();
    turn(COUNT);
    let took = start.elapsed().as_secs_f64();
    // The last question over the control socket has a file of its own for a moment.
    let _ = poll(|| (open_files(pid) <= before.0).then_some(()));
    let after = (open_files(pid), memory_kib(pid, "VmRSS"));
    println!("{COUNT} connections, {:.0} a second:", COUNT as f64 / took);
    row(
        "  open files",
        &after.0.to_string(),
        &before.0.to_string(),
        ratio(after.0, before.0),
        "<= 1",
    );
    row(
        "  resident KiB",
        &after.1.to_string(),
        &before.1.to_string(),
        ratio(after.1, before.1),
        "<= 1.05",
    );
    let left = host.task("it.0").number("connections");
    row("  connections", &left.to_string(), "-", left as f64, "0");
}

fn ratio(after: u64, before: u64) -> f64 {
    after as f64 / before as f64
}
