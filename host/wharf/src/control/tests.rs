//! The server and the client against each other, around a fake cell.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use tempfile::TempDir;

use super::{Client, ClientError, ServeConfig, Server, Serving, fake, openapi};
use crate::cell::Cell;
use crate::cell::console::ConsoleRing;
use crate::cell::protocol::{EventKind, Selector, TaskState};

struct Host {
    directory: TempDir,
    cell: Cell,
    rings: Vec<Arc<ConsoleRing>>,
    serving: Serving,
}

impl Host {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (cell, rings) = fake::cell();
        let server = Server::bind(&directory.path().join("s")).unwrap();
        let config = ServeConfig {
            workers: 2,
            config: Some("wharf.toml".into()),
        };
        let serving = server.start(cell.clone(), config).unwrap();
        Self {
            directory,
            cell,
            rings,
            serving,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    fn client(&self) -> Client {
        Client::new(&self.path()).unwrap()
    }

    /// Sends octets, and an end of them if that is wanted, and returns what comes back.
    fn exchange(&self, request: &[u8], is_end_told: bool) -> Vec<u8> {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        // A server that has heard enough may close before all is sent.
        let _ = stream.write_all(request);
        if is_end_told {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    /// Sends text and returns the status and body of what comes back.
    fn raw(&self, request: &str) -> (u16, String) {
        let answer = String::from_utf8(self.exchange(request.as_bytes(), false)).unwrap();
        let status = answer.split(' ').nth(1).map_or(0, |s| s.parse().unwrap());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, body.to_owned())
    }
}

fn selector(text: &str) -> Selector {
    text.parse().unwrap()
}

#[test]
fn tasks_are_shown_stopped_and_restarted() {
    let host = Host::start();
    let client = host.client();
    let status = client.host().unwrap();
    assert_eq!(
        (status.pid, status.workers, status.tasks),
        (std::process::id(), 2, 3)
    );
    assert_eq!(client.tasks(None).unwrap(), host.cell.tasks());
    assert_eq!(client.tasks(Some(&selector("web"))).unwrap().len(), 2);
    let stopped = client.stop(&selector("web.1")).unwrap();
    assert_eq!(stopped.len(), 1);
    assert_eq!(stopped[0].state, TaskState::Stopped);
    let restarted = client.restart(&selector("web")).unwrap();
    assert_eq!(restarted.iter().map(|task| task.generation).sum::<u64>(), 4);
    let error = client.stop(&selector("nope")).unwrap_err();
    assert_eq!(error.to_string(), "no task is called nope (try `wharf ps`)");
    assert!(client.metrics().unwrap().ends_with("# EOF\n"));
    host.serving.end();
    let error = client.host().unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
}

#[test]
fn a_bad_request_is_refused_and_changes_nothing() {
    let host = Host::start();
    let before = host.cell.tasks();
    for (line, status, error) in [
        ("GET /", 404, "there is nothing at /"),
        ("GET /v2/host", 404, "there is nothing at /v2/host"),
        ("POST /v1/host", 405, "/v1/host does not take POST"),
        ("GET /v1/down", 405, "/v1/down does not take GET"),
        (
            "DELETE /v1/tasks/web",
            405,
            "/v1/tasks/web does not take DELETE",
        ),
        ("GET /v1/tasks/nope", 404, "no task is called nope"),
        ("POST /v1/tasks/nope/stop", 404, "no task is called nope"),
        (
            "POST /v1/tasks/web.9/restart",
            404,
            "no task is called web.9",
        ),
        ("GET /v1/tasks/nope/console", 404, "no task is called nope"),
        ("POST /v1/tasks/a%20b/stop", 400, "\\\"a b\\\" is no task"),
        ("POST /v1/tasks/web.x/stop", 400, "\\\"web.x\\\" is no task"),
        ("GET /v1/tasks/%ff", 400, "UTF-8"),
        (
            "POST /v1/tasks/web/snapshot",
            400,
            "the body is no snapshot",
        ),
        ("GET /v1/tasks/web/console?tail=-1", 400, "tail"),
        ("GET /v1/tasks/web/console?follow=maybe", 400, "follow"),
        ("GET /v1/events?after=x", 400, "after"),
        ("GET /v1/events?befor=1", 400, "unknown field `befor`"),
    ] {
        let request = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let (got, body) = host.raw(&request);
        assert_eq!(got, status, "{line}: {body}");
        assert!(body.contains(error), "{line}: {body}");
        let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert!(problem["error"].is_string() && problem.as_object().unwrap().len() == 1);
    }
    assert_eq!(host.cell.tasks(), before);
}

#[test]
fn what_is_too_large_is_refused() {
    let host = Host::start();
    let before = host.cell.tasks();
    let head = "POST /v1/tasks/web/stop HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let body = "x".repeat(17 << 10);
    let length = body.len();
    let (status, answer) = host.raw(&format!("{head}content-length: {length}\r\n\r\n{body}"));
    assert_eq!(status, 413, "{answer}");
    let chunked =
        format!("{head}transfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n");
    assert_eq!(host.raw(&chunked).0, 413);
    assert_eq!(host.raw(&format!("{head}x-long: {body}\r\n\r\n")).0, 431);
    assert_eq!(host.raw("\x16\x03\x01 not HTTP\r\n\r\n").0, 400);
    assert_eq!(host.cell.tasks(), before);
}

#[test]
fn odd_requests_are_refused_in_few_words_and_change_nothing() {
    let host = Host::start();
    let before = host.cell.tasks();
    let stop = "POST /v1/tasks/web/stop HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let many: String = (0..200).map(|n| format!("x{n}: y\r\n")).collect();
    for (request, status) in [
        (&b"GET /v1/tasks/\xff\xfe HTTP/1.1\r\n\r\n"[..], 400),
        (b"GET /v1/tasks/a\0 HTTP/1.1\r\n\r\n", 400),
        (b"GET /v1/host\r\n\r\n", 400),
        (
            b"CONNECT wharf:80 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            404,
        ),
        (format!("{stop}{many}\r\n").as_bytes(), 431),
        (format!("{stop}content-length: -1\r\n\r\n").as_bytes(), 400),
        (
            format!("{stop}content-length: 1\r\ncontent-length: 2\r\n\r\nab").as_bytes(),
            400,
        ),
        (
            format!("{stop}content-length: 99999999999999999999\r\n\r\n").as_bytes(),
            400,
        ),
        (
            format!("{stop}transfer-encoding: chunked\r\n\r\nxyz\r\n").as_bytes(),
            413,
        ),
        (
            format!(
                "GET /{} HTTP/1.1\r\nconnection: close\r\n\r\n",
                "x".repeat(9_000)
            )
            .as_bytes(),
            404,
        ),
        (
            format!(
                "GET /v1/events?{} HTTP/1.1\r\nconnection: close\r\n\r\n",
                "x".repeat(9_000)
            )
            .as_bytes(),
            400,
        ),
    ] {
        let answer = host.exchange(request, false);
        let text = String::from_utf8_lossy(&answer);
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]);
        assert!(
            text.starts_with(&format!("HTTP/1.1 {status} ")),
            "{shown}: {text}"
        );
        assert!(answer.len() < 2_000, "{shown}: {} bytes", answer.len());
    }
    assert_eq!(host.cell.tasks(), before);
}

#[test]
fn requests_may_come_in_one_piece_and_their_end_before_the_answer() {
    let host = Host::start();
    let request = "GET /v1/tasks HTTP/1.1\r\nhost: x\r\n\r\n";
    let last = "GET /v1/tasks HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let many = request.repeat(300) + last;
    let answers = host.exchange(many.as_bytes(), false);
    let answers = String::from_utf8(answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 301);
    // What does not write any more still reads.
    for path in [
        "/v1/tasks",
        "/metrics",
        "/v1/tasks/web/console",
        "/v1/events",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        let answer = host.exchange(request.as_bytes(), true);
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{path}");
    }
    let stop = "POST /v1/tasks/db/stop HTTP/1.1\r\nhost: x\r\n\r\n";
    let answer = host.exchange(stop.as_bytes(), true);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer:?}");
}

/// As many as there is room for say nothing, or not all of it; nobody waits for them
/// longer than a client has patience.
#[test]
fn who_says_nothing_keeps_nobody_out() {
    let host = Host::start();
    let mut silent = Vec::new();
    for number in 0..64 {
        let mut stream = UnixStream::connect(host.path()).unwrap();
        if number % 2 == 0 {
            stream.write_all(b"GET /v1/ho").unwrap();
        }
        silent.push(stream);
    }
    assert_eq!(host.client().tasks(None).unwrap().len(), 3);
    for mut stream in silent {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut rest = Vec::new();
        // Closed or reset, but not left open.
        let closed = stream.read_to_end(&mut rest);
        assert!(!closed.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock));
    }
}

#[test]
fn who_asks_for_much_and_reads_nothing_keeps_nobody_out() {
    let host = Host::start();
    host.rings[0].append(&[0; 256 << 10]);
    let mut stuck = UnixStream::connect(host.path()).unwrap();
    stuck.set_nonblocking(true).unwrap();
    let request = "GET /v1/tasks/web/console HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    while stuck.write(request.as_bytes()).is_ok() {}
    assert_eq!(host.client().tasks(None).unwrap().len(), 3);
    host.serving.end();
}

#[test]
fn a_follower_gets_what_is_written_later_and_ends_with_the_host() {
    let host = Host::start();
    let client = host.client();
    host.rings[0].append(b"one\ntwo\n");
    let web = selector("web");
    let mut console = client.console(&web, Some(1), true).unwrap();
    let piece = console.next().unwrap().unwrap();
    assert_eq!(
        (piece.task.as_str(), piece.start, piece.text.as_str()),
        ("web.0", 4, "two\n")
    );
    host.rings[1].append("é".as_bytes());
    let piece = console.next().unwrap().unwrap();
    assert_eq!(
        (piece.task.as_str(), piece.start, piece.text.as_str()),
        ("web.1", 0, "é")
    );

    let other = host.client();
    let mut events = other.events(0, true).unwrap();
    host.cell
        .events()
        .add(None, 0, EventKind::Up, "up".to_owned());
    assert_eq!(events.next().unwrap().unwrap().detail, "up");
    client.down().unwrap();
    assert_eq!(events.next().unwrap().unwrap().kind, EventKind::Down);

    host.rings[0].append(b"last words");
    host.serving.end();
    assert_eq!(console.next().unwrap().unwrap().text, "last words");
    assert!(console.next().is_none());
    assert!(events.next().is_none());
    let left: Vec<_> = host.directory.path().read_dir().unwrap().collect();
    assert_eq!(left.len(), 1, "the lock's file only: {left:?}");
}

#[test]
fn followers_leave_room_for_others() {
    let host = Host::start();
    let clients: Vec<_> = (0..super::server::FOLLOWERS)
        .map(|_| host.client())
        .collect();
    let web = selector("web");
    let followers: Vec<_> = clients
        .iter()
        .map(|client| client.console(&web, None, true).unwrap())
        .collect();
    let client = host.client();
    let error = client.events(0, true).unwrap_err().to_string();
    assert!(error.contains("48 clients follow already"), "{error}");
    assert_eq!(client.tasks(None).unwrap().len(), 3);
    drop(followers);
    drop(clients);
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while client.events(0, true).is_err() {
        assert!(std::time::Instant::now() < deadline, "places stay taken");
    }
}

#[test]
fn the_description_in_the_repository_is_that_of_the_routes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
    let current = openapi().unwrap();
    if std::env::var_os("WRITE_OPENAPI").is_some() {
        std::fs::write(path, &current).unwrap();
    }
    let stored = std::fs::read_to_string(path).unwrap();
    assert!(
        stored == current,
        "run this test with WRITE_OPENAPI=1, and read the difference"
    );
}

/// With one that waits the queue is full, and the kernel says EAGAIN.
#[test]
fn who_finds_the_queue_full_waits_and_then_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    socket::listen(&socket, Backlog::new(0).unwrap()).unwrap();
    let first = UnixStream::connect(&path).unwrap();
    let client = Client::new(&path).unwrap();
    let error = client.host().unwrap_err();
    assert!(matches!(error, ClientError::Crowded { .. }), "{error}");
    assert!(error.to_string().contains("try again"), "{error}");
    // It gets its turn when there is room.
    let listener = UnixListener::from(socket);
    let accepts = std::thread::spawn(move || {
        drop(listener.accept().unwrap());
        drop(listener.accept().unwrap());
    });
    let error = client.host().unwrap_err();
    assert!(matches!(error, ClientError::Lost(_)), "{error}");
    drop(first);
    accepts.join().unwrap();
}
