//! The key-value service, as its clients have it: what was answered lasts.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;

use nix::sys::signal::{Signal, kill};
use wharf_tests::command::app;
use wharf_tests::guest::kvm;
use wharf_tests::host::{Host, PATIENCE, poll};
use wharf_tests::net::port;

fn start(directory: &Path, port: u16) -> Host {
    let toml = format!(
        "[[task]]\nname = \"kv\"\nimage = {:?}\npublish = [\"{port}:80\"]\n\
         [[task.block]]\ndevice = \"data\"\nfile = \"kv.img\"\nsize = \"8MiB\"\n",
        app("kv")
    );
    let host = Host::up(directory, &toml);
    let there = poll(|| TcpStream::connect(("127.0.0.1", port)).ok());
    assert!(there.is_some());
    host
}

/// One request of a connection of its own: the status and the body, unless the
/// connection broke.
fn ask(port: u16, method: &str, path: &str, body: &[u8]) -> Option<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: it\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    // A server that refuses a body need not read it.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let end = answer.windows(4).position(|it| it == b"\r\n\r\n")?;
    let head = String::from_utf8(answer[..end].to_vec()).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer[end + 4..].to_vec()))
}

#[test]
fn values_are_kept_found_listed_and_deleted() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let _host = start(directory.path(), at);
    let ask = |method, path: &str, body: &[u8]| ask(at, method, path, body).unwrap();
    assert_eq!(ask("GET", "/k/a", b"").0, 404);
    assert_eq!(ask("PUT", "/k/a", b"one").0, 200);
    assert_eq!(ask("PUT", "/k/b", &[0, 255, 10, 13]).0, 200);
    assert_eq!(ask("PUT", "/k/a", b"two").0, 200);
    assert_eq!(ask("GET", "/k/a", b""), (200, b"two".to_vec()));
    assert_eq!(ask("GET", "/k/b", b""), (200, vec![0, 255, 10, 13]));
    assert_eq!(ask("GET", "/k", b""), (200, b"a\nb\n".to_vec()));
    assert_eq!(ask("DELETE", "/k/a", b"").0, 200);
    assert_eq!(ask("GET", "/k/a", b"").0, 404);
    let large = vec![7; 32 << 10];
    assert_eq!(ask("PUT", "/k/large", &large).0, 200);
    assert_eq!(ask("GET", "/k/large", b""), (200, large));
    assert_eq!(ask("PUT", "/k/large", &vec![7; (32 << 10) + 1]).0, 413);
    // A key that is too long is no path of the service's.
    for (len, status) in [(128, 200), (129, 404)] {
        let path = format!("/k/{}", "x".repeat(len));
        assert_eq!(ask("PUT", &path, b"").0, status, "{len}");
        assert_eq!(ask("DELETE", &path, b"").0, status, "{len}");
    }
    assert_eq!(ask("POST", "/k/a", b"").0, 405);
    assert_eq!(ask("GET", "/k", b""), (200, b"b\nlarge\n".to_vec()));
}

/// The host is killed again and again while clients write. Whatever was answered is
/// there afterwards, and nothing is there that nobody wrote.
#[test]
fn what_was_answered_survives_the_hosts_violent_death() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let mut known: BTreeMap<String, u32> = BTreeMap::new();
    for round in 0_u32..4 {
        let host = start(directory.path(), at);
        for (key, least) in &known {
            let (status, body) = ask(at, "GET", &format!("/k/{key}"), b"").unwrap();
            assert_eq!(status, 200, "{key}, round {round}");
            let found: u32 = String::from_utf8(body).unwrap().parse().unwrap();
            // The last one may have been written, and its answer lost.
            assert!(
                (*least..=least + 1).contains(&found),
                "{key}: {found}, {least}"
            );
        }
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let key = format!("client-{client}");
                let mut value = known.get(&key).map_or(0, |it| it + 1);
                thread::spawn(move || {
                    let path = format!("/k/{key}");
                    let mut answered = None;
                    while ask(at, "PUT", &path, value.to_string().as_bytes())
                        .is_some_and(|(status, _)| status == 200)
                    {
                        answered = Some(value);
                        value += 1;
                    }
                    (key, answered)
                })
            })
            .collect();
        host.until_task("kv.0", |it| it.number("connections_total") > 80);
        kill(host.pid().unwrap(), Signal::SIGKILL).unwrap();
        for client in clients {
            let (key, answered) = client.join().unwrap();
            let answered = answered.expect("some were answered");
            assert!(
                known
                    .insert(key, answered)
                    .is_none_or(|last| answered >= last)
            );
        }
    }
}
