//! Streams, as clients, operators and guests have them: real sockets, the real binary.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::SockRef;
use wharf_tests::command::{app, output, policy, wharf};
use wharf_tests::guest::kvm;
use wharf_tests::host::{Host, PATIENCE, poll};
use wharf_tests::net::port;
use wharf_tests::process::{memory_kib, open_files};

/// A task of an app, with what else is to be said of it.
fn task(name: &str, app_name: &str, args: &[&str], more: &str) -> String {
    format!(
        "[[task]]\nname = \"{name}\"\nimage = {:?}\nargs = {args:?}\n{more}\n",
        app(app_name)
    )
}

fn published(port: u16, guest_port: u16) -> String {
    format!("publish = [\"127.0.0.1:{port}:{guest_port}\"]")
}

/// A connection that is there, and gives up when the other side is silent.
fn connect(port: u16) -> TcpStream {
    connect_to(([127, 0, 0, 1], port).into())
}

fn connect_to(address: SocketAddr) -> TcpStream {
    // The control socket is there a little before the ports.
    let stream = poll(|| TcpStream::connect(address).ok()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Says something and reads the same.
fn exchange(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text.as_bytes());
}

/// One request of its own connection.
fn get(port: u16, path: &str) -> String {
    let mut stream = connect(port);
    let request = format!("GET {path} HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn is_cut_off(stream: &mut TcpStream) -> bool {
    let mut byte = [0; 1];
    match stream.read(&mut byte) {
        Ok(count) => count == 0,
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}

/// Bytes that look random and are the same each time.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(step).take(len).collect()
}

#[test]
fn a_service_answers_on_every_address_that_it_is_published_on() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (four, six) = (port(), port());
    let publish = format!("publish = [\"{four}:80\", \"[::1]:{six}:80\"]");
    let toml = task("web", "http", &["--greeting", "ahoy"], &publish);
    let host = Host::up(directory.path(), &toml);
    let found = get(four, "/");
    assert!(
        found.starts_with("HTTP/1.1 200") && found.ends_with("\r\n\r\nahoy"),
        "{found}"
    );
    assert!(get(four, "/nowhere").starts_with("HTTP/1.1 404"));
    let mut stream = connect_to(format!("[::1]:{six}").parse().unwrap());
    // Kept alive: two requests of one connection.
    for _ in 0..2 {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: it\r\n\r\n")
            .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"ahoy") {
            let mut byte = [0; 1];
            stream.read_exact(&mut byte).unwrap();
            answer.extend(byte);
        }
    }
    drop(stream);
    let web = host.until_task("web.0", |it| it.number("connections") == 0);
    assert_eq!(web.number("connections_total"), 3);
    assert!(web.number("received_bytes") > 100 && web.number("sent_bytes") > 100);
}

#[test]
fn large_data_goes_there_and_back_whole() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let host = Host::up(
        directory.path(),
        &task("echo", "echo", &[], &published(at, 7)),
    );
    let clients: Vec<_> = [1, 65_535, 1 << 20, 8 << 20]
        .map(|len| {
            thread::spawn(move || {
                let sent = noise(len);
                let stream = connect(at);
                let mut writer = stream.try_clone().unwrap();
                let (copy, mut stream) = (sent.clone(), stream);
                let writing = thread::spawn(move || {
                    writer.write_all(&copy).unwrap();
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                let mut back = Vec::new();
                // The guest goes on after our last byte, and ends after its own.
                stream.read_to_end(&mut back).unwrap();
                writing.join().unwrap();
                assert!(back == sent, "{} of {len} bytes", back.len());
            })
        })
        .into_iter()
        .collect();
    clients.into_iter().for_each(|it| it.join().unwrap());
    let echo = host.until_task("echo.0", |it| it.number("connections") == 0);
    assert_eq!(echo.number("connection_errors"), 0);
    assert_eq!(echo.number("received_bytes"), echo.number("sent_bytes"));
}

#[test]
fn a_foreground_run_publishes_too() {
    let Some(_) = kvm() else { return };
    let at = port();
    let mut command = wharf(["run", "--timeout", "60s", "--publish"]);
    command.arg(format!("{at}:7")).arg(app("echo"));
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut stream = poll(|| TcpStream::connect(("127.0.0.1", at)).ok()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    exchange(&mut stream, "hello");
    end(&mut child);
    assert!(is_cut_off(&mut stream));
}

fn end(child: &mut Child) {
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let _ = child.wait().unwrap();
}

#[test]
fn what_cannot_be_published_refuses_the_whole_in_one_line() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let listening = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listening.local_addr().unwrap().port();
    let free = port();
    for (toml, told) in [
        (
            task("a", "echo", &[], &published(free, 7))
                + &task("b", "echo", &[], &published(taken, 7)),
            format!(
                "task b: cannot listen on 127.0.0.1:{taken}: somebody else does; end that, or publish another port"
            ),
        ),
        (
            task(
                "a",
                "echo",
                &[],
                &format!("publish = [\"192.0.2.1:{free}:7\"]"),
            ),
            format!("task a: cannot listen on 192.0.2.1:{free}: this machine has no such address"),
        ),
    ] {
        let host = Host::new(directory.path(), &toml);
        let printed = output(&mut host.up_command(&["--detach"]));
        assert_eq!((printed.status, printed.stdout.as_str()), (125, ""));
        assert!(printed.stderr.contains(&told), "{}", printed.stderr);
        assert_eq!(printed.stderr.lines().count(), 1, "{}", printed.stderr);
        // None of it is there.
        assert!(TcpListener::bind(("127.0.0.1", free)).is_ok());
    }
    drop(listening);
    // An image that takes no connections is the fault of one task.
    let toml = task("a", "hello", &[], &published(free, 7));
    let host = Host::new(directory.path(), &toml);
    let printed = output(&mut host.up_command(&["--strict"]));
    assert_eq!(printed.status, 125);
    let told =
        format!("task a: 127.0.0.1:{free} is published, and image hello declares no stream device");
    assert!(printed.stderr.contains(&told), "{}", printed.stderr);
    // Nor can it have a share of another's.
    let toml =
        task("web", "echo", &[], &published(free, 7)) + &task("a", "hello", &[], "joins = \"web\"");
    let host = Host::new(directory.path(), &toml);
    for args in [&[][..], &["--detach"], &["--check"]] {
        let printed = output(&mut host.up_command(args));
        let told = "task a: joins \"web\", and image hello declares no stream device: take joins \
                    out, or add stream = [\"net\"] to the image's `#[wharf::main]`\n";
        assert_eq!(printed.status, 125, "{args:?}");
        assert!(printed.stderr.ends_with(told), "{}", printed.stderr);
        assert_eq!(printed.stderr.lines().count(), 1, "{}", printed.stderr);
    }
    for publish in ["80", "0:80", "nowhere:80:80"] {
        let printed = output(&mut wharf(["run", "--publish", publish, "x.elf"]));
        assert_eq!(printed.status, 2, "{publish}");
    }
}

#[test]
fn a_guest_is_told_who_its_client_is() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (four, six) = (port(), port());
    let publish = format!("publish = [\"{four}:7\", \"[::1]:{six}:7\"]");
    let to = format!("127.0.0.1:{four}");
    let toml = task("peer", "peer", &[], &publish)
        + &task("fetch", "fetch", &[&to, "?"], "restart = \"never\"");
    let host = Host::up(directory.path(), &toml);
    for address in [to, format!("[::1]:{six}")] {
        let mut stream = connect_to(address.parse().unwrap());
        let own = stream.local_addr().unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert_eq!(said, format!("{own}\n"));
    }
    // Another guest has no address.
    host.until_task("fetch.0", |it| it.optional("exit_status") == Some(0));
    assert_eq!(host.ask(&["logs", "fetch"]), "[::]:0\n");
}

#[test]
fn who_comes_before_the_guest_waits_for_it() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let toml = task(
        "echo",
        "echo",
        &[],
        &(published(at, 7) + "\nrestart = \"always\""),
    );
    let host = Host::up(directory.path(), &toml);
    let mut stream = connect(at);
    exchange(&mut stream, "one");
    let _ = host.ask(&["restart", "echo"]);
    assert!(is_cut_off(&mut stream), "its guest is gone");
    // Whether that is before or after the next generation serves: nobody is refused.
    for _ in 0..3 {
        exchange(&mut connect(at), "again");
    }
    let echo = host.until_task("echo.0", |it| it.number("connections") == 0);
    assert_eq!(echo.number("generation"), 2);
    let _ = host.ask(&["stop", "echo"]);
    host.until_task("echo.0", |it| it.state() == "stopped");
    assert!(is_cut_off(&mut connect(at)), "nobody came");
}

#[test]
fn a_guest_that_never_listens_and_one_that_resets_cost_their_clients_only() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (resets, never, good, closed) = (port(), port(), port(), port());
    let toml = task("resets", "streamload", &["reset"], &published(resets, 9))
        + &task("never", "streamload", &["none"], &published(never, 9))
        + &task(
            "good",
            "echo",
            &[],
            &format!("publish = [\"{good}:7\", \"{closed}:8\"]"),
        );
    let host = Host::up(directory.path(), &toml);
    for _ in 0..20 {
        assert!(is_cut_off(&mut connect(resets)));
        assert!(is_cut_off(&mut connect(closed)), "the guest has no port 8");
        exchange(&mut connect(good), "fine");
    }
    assert!(is_cut_off(&mut connect(never)));
    for replica in ["resets.0", "never.0", "good.0"] {
        host.until_task(replica, |it| it.number("connections") == 0);
    }
    assert_eq!(host.task("resets.0").number("connection_errors"), 20);
}

/// Who reads nothing holds up itself: neither memory nor others pay for it.
#[test]
fn slow_readers_on_either_side_are_bounded_and_alone() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (stalls, pours, good) = (port(), port(), port());
    let toml = task("stalls", "streamload", &["stall"], &published(stalls, 9))
        + &task("pours", "streamload", &["chargen"], &published(pours, 19))
        + &task("good", "echo", &[], &published(good, 7));
    let host = Host::up(directory.path(), &toml);
    exchange(&mut connect(good), "before");
    let pid = host.pid().unwrap();
    // Eight clients that only send to a guest that never reads, eight that never read.
    let block = vec![0; 64 << 10];
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut stream = connect(stalls);
        stream.set_nonblocking(true).unwrap();
        let mut idle = 0;
        let stuck = poll(|| match stream.write(&block) {
            Ok(_) => {
                idle = 0;
                None
            }
            Err(_) => {
                idle += 1;
                thread::sleep(Duration::from_millis(5));
                (idle > 20).then_some(())
            }
        });
        assert!(stuck.is_some(), "it takes all there is");
        clients.push(stream);
        clients.push(connect(pours));
    }
    // What pours is stuck, too, when it has nothing more to do.
    host.until_task("pours.0", |it| {
        it.number("connections") == 8 && it.state() == "waiting"
    });
    let before = memory_kib(pid, "RssAnon");
    exchange(&mut connect(good), "during");
    for _ in 0..50 {
        exchange(&mut connect(good), "more");
    }
    let grown = memory_kib(pid, "RssAnon").saturating_sub(before);
    assert!(grown < 8 << 10, "{grown} KiB more");
    // One that reads after all gets it all in order.
    let mut late = clients.pop().unwrap();
    let mut letters = vec![0; 26 << 10];
    for _ in 0..400 {
        late.read_exact(&mut letters).unwrap();
        assert!(
            letters
                .chunks(26)
                .all(|it| it == b"abcdefghijklmnopqrstuvwxyz")
        );
    }
    drop((clients, late));
    // Those of the guest that stalls have something for it still.
    for replica in ["pours.0", "good.0"] {
        host.until_task(replica, |it| it.number("connections") == 0);
    }
    assert_eq!(host.task("stalls.0").number("connections"), 8);
}

#[test]
fn a_client_that_resets_leaves_nothing_behind() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let host = Host::up(
        directory.path(),
        &task("echo", "echo", &[], &published(at, 7)),
    );
    exchange(&mut connect(at), "warm");
    host.until_task("echo.0", |it| it.number("connections") == 0);
    let pid = host.pid().unwrap();
    let before = open_files(pid);
    for round in 0..500 {
        let mut stream = connect(at);
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        match round % 4 {
            // At once, after a word, in the middle of an answer, and half-open.
            0 => {}
            1 => exchange(&mut stream, "hi"),
            2 => stream.write_all(&[7; 4096]).unwrap(),
            _ => stream.shutdown(Shutdown::Write).unwrap(),
        }
    }
    host.until_task("echo.0", |it| it.number("connections") == 0);
    // Those of the control socket's clients come and go a little later.
    host.until("all are closed", || {
        (open_files(pid) <= before).then_some(())
    });
    exchange(&mut connect(at), "fine");
}

#[test]
fn replicas_get_connections_by_how_many_they_have() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let toml = "[host]\nworkers = 2\n".to_owned()
        + &task("echo", "echo", &[], &(published(at, 7) + "\nreplicas = 3"));
    let host = Host::up(directory.path(), &toml);
    for replica in ["echo.0", "echo.1", "echo.2"] {
        host.until("it listens", || {
            host.ask(&["logs", replica])
                .contains("listening")
                .then_some(())
        });
    }
    let mut streams: Vec<_> = (0..30).map(|_| connect(at)).collect();
    streams.iter_mut().for_each(|it| exchange(it, "hello"));
    for task in host.tasks() {
        assert_eq!(task.number("connections"), 10, "{task:?}");
    }
}

/// A router that sends what comes from outside to the target of this place.
fn pinning(directory: &Path, name: &str, body: &str) -> String {
    use wharf_tests::plugin::PluginWat;
    let path = directory.join(name);
    PluginWat::new("router")
        .identity(name, "1.0.0")
        .body("connect", body)
        .write(&path);
    path.to_str().unwrap().to_owned()
}

const DENY: &str = "(i32.store8 (i32.const 64) (i32.const 4)) (i32.const 64)";

#[test]
fn a_router_denies_and_a_swap_concerns_the_next_connection() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let toml = task("echo", "echo", &[], &published(at, 7));
    let host = Host::up(directory.path(), &toml);
    let mut established = connect(at);
    exchange(&mut established, "before");
    let denies = pinning(directory.path(), "denies", DENY);
    let _ = host.ask(&["policy", "swap", "router", &denies]);
    assert!(is_cut_off(&mut connect(at)), "it was denied");
    exchange(&mut established, "still there");
    let _ = host.ask(&["policy", "rollback", "router"]);
    exchange(&mut connect(at), "again");
    exchange(&mut established, "all the while");
    let slots = host.ask(&["policy", "ls", "--json"]);
    assert!(
        slots.contains("\"strikes\": 0") || slots.contains("\"strikes\":0"),
        "{slots}"
    );
}

#[test]
fn a_router_pins_connections_to_one_replica() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let pins = policy("static-routes");
    let toml = format!(
        "[policy.router]\nplugin = {:?}\nconfig = {{ \"port-{at}\" = \"echo.1\" }}\n",
        pins
    ) + &task("echo", "echo", &[], &(published(at, 7) + "\nreplicas = 2"));
    let host = Host::up(directory.path(), &toml);
    // A route never leads elsewhere: while the other one alone listens, nobody gets in.
    host.until_task("echo.1", |it| {
        it.number("console_bytes") > 0 && it.state() == "waiting"
    });
    let mut streams: Vec<_> = (0..6).map(|_| connect(at)).collect();
    streams.iter_mut().for_each(|it| exchange(it, "hello"));
    assert_eq!(host.task("echo.0").number("connections_total"), 0);
    assert_eq!(host.task("echo.1").number("connections"), 6);
}

/// Two versions of one service side by side, on one port: the next one gets its share
/// of the clients, each of which stays with what it got.
#[test]
fn a_canary_shares_the_port_of_the_task_that_it_joins() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let built = policy("canary");
    let toml = format!(
        "[policy.router]\nplugin = {:?}\nconfig = {{ sticky = false }}\n",
        built
    ) + &task("old", "http", &["--greeting", "old"], &published(at, 80))
        + &task(
            "new",
            "http",
            &["--greeting", "new"],
            "joins = \"old\"\nlabels = { canary = \"30\" }",
        );
    let host = Host::up(directory.path(), &toml);
    // Both have to be there before shares mean anything.
    host.until("both serve", || {
        let _ = get(at, "/");
        let counts = ["old.0", "new.0"].map(|it| host.task(it).number("connections_total"));
        counts.iter().all(|it| *it > 0).then_some(())
    });
    let answers: Vec<String> = (0..400).map(|_| get(at, "/")).collect();
    let new = answers.iter().filter(|it| it.ends_with("new")).count();
    let old = answers.iter().filter(|it| it.ends_with("old")).count();
    assert_eq!(new + old, 400);
    // By lot: 120 are expected, and four standard deviations are 37.
    assert!((80..160).contains(&new), "{new} of 400");
    // Without the plugin, connections go to who has the fewest: both serve.
    let _ = host.ask(&["policy", "swap", "router", "built-in"]);
    let mut held: Vec<_> = (0..10).map(|_| connect(at)).collect();
    for stream in &mut held {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: it\r\n\r\n")
            .unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
    }
    for replica in ["old.0", "new.0"] {
        assert_eq!(host.task(replica).number("connections"), 5);
    }
}

/// `fetch` of one address, under an allow-list or nothing.
fn fetch(allow: Option<&str>, to: &str, more: &str) -> (u64, String) {
    let directory = tempfile::tempdir().unwrap();
    let mut toml = String::new();
    if let Some(allow) = allow {
        let built = policy("allow-list");
        toml = format!(
            "[policy.router]\nplugin = {:?}\nconfig = {{ allow = {allow:?} }}\n",
            built
        );
    }
    toml += more;
    toml += &task(
        "fetch",
        "fetch",
        &[to, "hello out there"],
        "restart = \"never\"",
    );
    let host = Host::up(directory.path(), &toml);
    let task = host.until_task("fetch.0", |it| it.optional("exit_status").is_some());
    (task.number("exit_status"), host.ask(&["logs", "fetch"]))
}

#[test]
fn a_guest_gets_out_where_the_router_lets_it_and_nowhere_else() {
    let Some(_) = kvm() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        stream
            .write_all(format!("you said {said}").as_bytes())
            .unwrap();
    });
    // Nothing is let out without a plugin, nor past its list.
    assert_eq!(fetch(None, &to, "").0, 11);
    assert_eq!(fetch(Some("10.0.0.0/8:443"), &to, "").0, 11);
    let (status, said) = fetch(Some("127.0.0.0/8:*"), &to, "");
    assert_eq!((status, said.as_str()), (0, "you said hello out there\n"));
    server.join().unwrap();
    // Nobody listens there any more.
    assert_eq!(fetch(Some("127.0.0.0/8:*"), &to, "").0, 12);
}

#[test]
fn a_guest_reaches_another_by_its_published_port() {
    let Some(_) = kvm() else { return };
    let at = port();
    let echo = task("echo", "echo", &[], &published(at, 7));
    let (status, said) = fetch(None, &format!("127.0.0.1:{at}"), &echo);
    assert_eq!((status, said.as_str()), (0, "hello out there\n"));
}

#[test]
fn a_guest_that_dies_takes_its_connections_with_it() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let toml = task("echo", "echo", &[], &published(at, 7));
    let mut host = Host::up(directory.path(), &toml);
    let mut streams: Vec<_> = (0..20).map(|_| connect(at)).collect();
    streams.iter_mut().for_each(|it| exchange(it, "hello"));
    let _ = host.ask(&["stop", "echo"]);
    assert!(streams.iter_mut().all(is_cut_off));
    host.until_task("echo.0", |it| it.number("connections") == 0);
    host.signal(Signal::SIGTERM);
    assert_eq!(host.status(), 0);
    assert!(
        TcpListener::bind(("127.0.0.1", at)).is_ok(),
        "the port is free again"
    );
}

/// Clients take what descriptors there are, and not the last ones: the host can still
/// be asked, and guests be started.
#[test]
fn more_clients_than_descriptors_are_refused_and_the_host_goes_on() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = port();
    let mut host = Host::new(
        directory.path(),
        &task(
            "echo",
            "echo",
            &[],
            &(published(at, 7) + "\nrestart = \"always\""),
        ),
    );
    host.start_after("ulimit -n 200");
    exchange(&mut connect(at), "first");
    let mut streams: Vec<_> = (0..300).map(|_| connect(at)).collect();
    let mut served = 0;
    for stream in &mut streams {
        let said = stream.write_all(b"x").is_ok();
        let mut byte = [0; 1];
        served += usize::from(said && stream.read_exact(&mut byte).is_ok());
    }
    assert!((20..150).contains(&served), "{served} of 300");
    assert_eq!(
        host.task("echo.0").number("connections"),
        u64::try_from(served).unwrap()
    );
    let _ = host.ask(&["restart", "echo"]);
    host.until_task("echo.0", |it| it.number("generation") == 2);
    drop(streams);
    exchange(&mut connect(at), "again");
}
