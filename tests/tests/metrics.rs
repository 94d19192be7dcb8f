//! `/metrics` as Prometheus reads it: by the parsers of its own Python client.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use wharf_abi::hypercall::FOREVER;
use wharf_abi::{Hypercall, Interest};
use wharf_tests::command::{output, root};
use wharf_tests::elf::ElfBuilder;
use wharf_tests::frames::{BURST, burst};
use wharf_tests::guest::{assemble, call, exit, kvm};
use wharf_tests::host::{Host, Object, objects};

const DATA: u64 = 0x50_0000;

/// Reads what it is given with the parser that is named, which refuses what is not
/// in the format, and prints each sample as an object.
const PARSE: &str = "
import importlib, json, sys
parser = importlib.import_module(sys.argv[1])
for family in parser.text_string_to_metric_families(sys.stdin.read()):
    assert family.documentation, family
    for sample in family.samples:
        print(json.dumps(dict(sample.labels, family=family.name, type=family.type,
                              unit=family.unit, name=sample.name, value=sample.value)))
";

/// What Prometheus 3 sends, and what asks for its older format.
const ACCEPT_OPEN: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
    application/openmetrics-text;version=0.0.1;q=0.5,\
    text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
const ACCEPT_CLASSIC: &str = "text/plain;version=0.0.4;q=0.9,*/*;q=0.1";

/// Says aloud what is not tested here. Not `eprintln!`, which the harness swallows.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Where `prometheus_client` is, installed if need be.
fn prometheus_client() -> Option<PathBuf> {
    let tools = root().join("target/tools");
    let python = tools.join("python");
    if python.join("prometheus_client").is_dir() {
        return Some(python);
    }
    fs::create_dir_all(&tools).unwrap();
    let unfinished = tempfile::tempdir_in(&tools).unwrap();
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]);
    pip.arg(unfinished.path()).arg("prometheus-client");
    let Ok(installed) = pip.output() else {
        skipped("there is no python3");
        return None;
    };
    let said = String::from_utf8_lossy(&installed.stderr);
    if !installed.status.success() {
        let unreachable =
            said.contains("No matching distribution") || said.contains("No module named pip");
        assert!(unreachable, "pip fails: {said}");
        skipped("pip cannot get prometheus-client from its registry");
        return None;
    }
    // Whole or not at all, also when two tests do this at once.
    let _ = fs::rename(unfinished.path(), &python);
    Some(python)
}

/// The metrics of a host as a scraper reads them that asks so, and their media type.
fn scrape(host: &Host, client: &PathBuf, accept: &str) -> (String, Vec<Object>) {
    let (head, body) = host.http_with("GET", "/metrics", &format!("Accept: {accept}\r\n"));
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let media_type = head
        .lines()
        .find_map(|line| line.strip_prefix("content-type: "))
        .unwrap()
        .to_owned();
    let parser = if media_type.starts_with("application/openmetrics-text;") {
        "prometheus_client.openmetrics.parser"
    } else {
        "prometheus_client.parser"
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &body).unwrap();
    let mut python = Command::new("python3");
    python
        .env("PYTHONPATH", client)
        .args(["-c", PARSE, parser])
        .stdin(fs::File::open(file.path()).unwrap());
    let parsed = output(&mut python);
    assert_eq!((parsed.status, parsed.stderr.as_str()), (0, ""), "{body}");
    (media_type, objects(&parsed.stdout))
}

/// How many events there are of a kind.
fn count(events: &[Object], kind: &str) -> usize {
    let of_kind = events.iter().filter(|event| event.text("kind") == kind);
    of_kind.count()
}

fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let waits = assemble(|a| {
        call(a, Hypercall::ConsoleWrite, DATA, 3)?;
        call(a, Hypercall::Wait, FOREVER, Interest::STOP.bits())?;
        exit(a, 0)
    });
    let fails = assemble(|a| exit(a, 3));
    for (name, code) in [("waits", waits), ("fails", fails)] {
        let elf = ElfBuilder::guest(&code).data(DATA, b"up\n").build();
        fs::write(directory.path().join(name), elf).unwrap();
    }
    fs::write(directory.path().join("lies"), burst(Some(0))).unwrap();
    directory
}

#[test]
fn prometheus_reads_what_ps_and_events_say() {
    let Some(_) = kvm() else { return };
    let Some(client) = prometheus_client() else {
        return;
    };
    let directory = directory();
    let host = Host::up(
        directory.path(),
        "[[task]]\nname = \"web\"\nimage = \"waits\"\nreplicas = 2\n\
         [[task]]\nname = \"bad\"\nimage = \"fails\"\nrestart = \"never\"\n\
         [[task]]\nname = \"gone\"\nimage = \"nowhere\"\nrestart = \"never\"\n\
         [[task]]\nname = \"liar\"\nimage = \"lies\"\n",
    );
    for replica in ["web.0", "web.1"] {
        host.until_task(replica, |task| {
            task.state() == "waiting" && task.number("console_bytes") == 3
        });
    }
    host.until_task("bad.0", |task| task.state() == "stopped");
    host.until_task("gone.0", |task| task.state() == "faulted");
    let _ = host.ask(&["restart", "web.1"]);
    host.until_task("web.1", |task| {
        task.state() == "waiting" && task.number("console_bytes") == 6
    });
    host.until_task("liar.0", |task| {
        let dropped = task.number("sent_frames_dropped");
        task.state() == "waiting" && dropped == u64::from(BURST)
    });
    // All of them wait or have ended: nothing changes from here on.
    let told = [
        ("started", 5),
        ("start-failed", 1),
        ("exited", 2),
        ("moved", 0),
    ];
    let events = host.until("all of it is told", || {
        let events = host.events();
        let is_told = |(kind, least): (&str, usize)| count(&events, kind) >= least;
        told.into_iter().all(is_told).then_some(events)
    });
    let tasks = host.tasks();

    for (accept, expected) in [
        (
            ACCEPT_OPEN,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        (ACCEPT_CLASSIC, "text/plain; version=0.0.4; charset=utf-8"),
    ] {
        let (media_type, samples) = scrape(&host, &client, accept);
        assert_eq!(media_type, expected);
        let value = |name: &str, labels: &[(&str, &str)]| -> f64 {
            let is_it = |sample: &&Object| {
                let has = |(label, value): &(&str, &str)| sample.text(label) == *value;
                sample.text("name") == name && labels.iter().all(has)
            };
            let found: Vec<&Object> = samples.iter().filter(is_it).collect();
            assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
            found[0].float("value")
        };
        for task in &tasks {
            let index = task.number("index").to_string();
            let labels = [("task", task.text("name")), ("index", &*index)];
            for (metric, field, unit) in [
                ("wharf_task_run_seconds_total", "run_ns", 1e-9),
                ("wharf_task_exits_total", "exits", 1.0),
                ("wharf_task_console_bytes_total", "console_bytes", 1.0),
                (
                    "wharf_task_received_frames_dropped_total",
                    "received_frames_dropped",
                    1.0,
                ),
                (
                    "wharf_task_sent_frames_dropped_total",
                    "sent_frames_dropped",
                    1.0,
                ),
                ("wharf_task_restarts_total", "restarts", 1.0),
                ("wharf_task_memory_bytes", "memory_bytes", 1.0),
            ] {
                let (got, told) = (value(metric, &labels), task.number(field) as f64 * unit);
                assert!((got - told).abs() <= 1e-6 * told, "{metric}: {got}, {told}");
            }
            for state in [
                "starting", "ready", "running", "waiting", "stopped", "faulted",
            ] {
                let labels = [labels[0], labels[1], ("state", state)];
                let is_in_it = f64::from(u8::from(task.state() == state));
                assert_eq!(value("wharf_task_state", &labels), is_in_it, "{labels:?}");
            }
        }
        assert_eq!(value("wharf_tasks", &[]), tasks.len() as f64);
        for (kind, _) in told {
            assert_eq!(
                value("wharf_events_total", &[("kind", kind)]),
                count(&events, kind) as f64,
                "{kind}"
            );
        }
        for (family, kind) in [
            ("wharf_task_state", "gauge"),
            ("wharf_task_run_seconds", "counter"),
            ("wharf_task_exits", "counter"),
            ("wharf_task_console_bytes", "counter"),
            ("wharf_task_received_frames_dropped", "counter"),
            ("wharf_task_sent_frames_dropped", "counter"),
            ("wharf_task_restarts", "counter"),
            ("wharf_task_memory_bytes", "gauge"),
            ("wharf_tasks", "gauge"),
            ("wharf_events", "counter"),
        ] {
            let mut of_it = samples
                .iter()
                .filter(|sample| sample.text("family") == family);
            let first = of_it
                .next()
                .unwrap_or_else(|| panic!("no {family} in {samples:?}"));
            assert_eq!(first.text("type"), kind, "{family}");
        }
    }
    assert_eq!(host.tasks(), tasks, "nothing has changed meanwhile");
}
