//! A host that runs out of what the machine has: descriptors, address space, room
//! for files, readers. It is one task's misfortune, or nobody's, and never its end.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use nix::sys::signal::Signal;
use tempfile::TempDir;
use wharf_abi::hypercall::FOREVER;
use wharf_abi::{Hypercall, Interest};
use wharf_tests::command::{app, output, wharf};
use wharf_tests::elf::ElfBuilder;
use wharf_tests::guest::{assemble, call, exit, kvm};
use wharf_tests::host::{Host, Object, poll, status};

const DATA: u64 = 0x50_0000;

fn image(
    directory: &Path,
    name: &str,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let elf = ElfBuilder::guest(&assemble(write)).data(DATA, &[b'x'; 4096]);
    fs::write(directory.join(name), elf.build()).unwrap();
}

fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    image(path, "waits", |a| {
        call(a, Hypercall::Wait, FOREVER, Interest::STOP.bits())?;
        exit(a, 0)
    });
    image(path, "floods", |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        call(a, Hypercall::ConsoleWrite, DATA, 4096)?;
        a.jmp(again)
    });
    image(path, "crashes", |a| a.ud2());
    directory
}

fn task(name: &str, image: &str, lines: &str) -> String {
    format!("[[task]]\nname = \"{name}\"\nimage = \"{image}\"\n{lines}\n")
}

/// A host that was started with this limit of the shell's.
fn limited(directory: &Path, limit: &str, toml: &str) -> Host {
    let mut host = Host::new(directory, toml);
    host.start_after(limit);
    host
}

/// Waits until the first start of every task is over, and returns those that wait
/// and those that could not be started.
fn settled(host: &Host) -> (Vec<Object>, Vec<Object>) {
    let tasks = host.until("all starts", || {
        let tasks = host.tasks();
        let is_over = |task: &Object| matches!(task.state(), "waiting" | "faulted");
        tasks.iter().all(is_over).then_some(tasks)
    });
    tasks
        .into_iter()
        .partition(|task| task.state() == "waiting")
}

/// What the metrics count of a kind of events.
fn counted(host: &Host, kind: &str) -> u64 {
    let (_, metrics) = host.http("GET", "/metrics");
    let start = format!("wharf_events_total{{kind=\"{kind}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&start));
    value
        .and_then(|value| value.parse().ok())
        .expect("it is counted")
}

#[test]
fn descriptors_that_run_out_are_the_last_tasks_misfortune() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let toml = task(
        "web",
        "waits",
        "replicas = 64\nrestart = \"never\"\nmemory = \"8MiB\"",
    );
    let mut host = limited(directory.path(), "ulimit -n 96", &toml);
    let (run, failed) = settled(&host);
    assert!(run.len() > 5 && failed.len() > 5, "{} run", run.len());
    for task in &failed {
        assert!(task.text("reason").contains("ulimit -n"), "{task:?}");
        host.until_event(&task.replica(), "start-failed", 0);
    }
    assert_eq!(counted(&host, "start-failed"), failed.len() as u64);
    // What one gives back, another may have.
    for task in run.iter().take(2) {
        let _ = host.ask(&["stop", &task.replica()]);
    }
    let again = failed[0].replica();
    let _ = host.ask(&["restart", &again]);
    host.until_task(&again, |task| task.state() == "waiting");
    // Several clients at once find room, too.
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let mut client = host.command(&["events", "--follow"]);
            client.stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    assert_eq!(host.tasks().len(), 64);
    host.signal(Signal::SIGTERM);
    assert_eq!(host.status(), 0);
    for mut client in clients {
        assert_eq!(poll(|| status(&mut client)), Some(0));
    }
}

/// Found by hand: a worker without a descriptor kept its tasks, and the host, for ever.
#[test]
fn a_host_that_cannot_start_says_so_and_one_that_can_ends() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let toml = "[host]\nworkers = 2\n".to_owned() + &task("web", "waits", "restart = \"never\"");
    for limit in 4..32 {
        let host = Host::new(directory.path(), &toml);
        let said = fs::File::create(directory.path().join("said")).unwrap();
        let mut child = host.up_after(&format!("ulimit -n {limit}"));
        let mut child = child.stderr(said).spawn().unwrap();
        let ended = host.until("it serves or ends", || {
            let ended = status(&mut child);
            let serves = ended.is_none() && host.said().contains("the cell serves");
            (serves || ended.is_some()).then_some(ended)
        });
        let ended = ended.unwrap_or_else(|| {
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(child.id().try_into().unwrap()),
                Signal::SIGTERM,
            )
            .unwrap();
            poll(|| status(&mut child)).unwrap_or_else(|| {
                let _ = child.kill();
                panic!("{limit}: it does not end: {}", host.said())
            })
        });
        assert!(
            matches!(ended, 0 | 125 | 127),
            "{limit}: {ended}: {}",
            host.said()
        );
        assert!(!host.said().is_empty());
    }
}

#[test]
fn memory_that_is_not_there_is_the_misfortune_of_who_wants_it() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let toml = task("small", "waits", "replicas = 4\nmemory = \"8MiB\"")
        + &task("large", "waits", "restart = \"never\"\nmemory = \"16GiB\"")
        + &task("late", "waits", "memory = \"8MiB\"");
    let host = limited(directory.path(), "ulimit -v 8388608", &toml);
    let (run, failed) = settled(&host);
    assert_eq!((run.len(), failed.len()), (5, 1), "{failed:?}");
    assert_eq!(failed[0].replica(), "large.0");
    let event = host.until_event("large.0", "start-failed", 0);
    assert!(event.text("detail").contains("memory"), "{event:?}");
    assert_eq!(counted(&host, "start-failed"), 1);
}

#[test]
fn a_machine_full_of_guests_starts_no_more_and_goes_on() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let lines = "replicas = 64\nmemory = \"256MiB\"\nrestart = \"never\"";
    let toml = task("web", "waits", lines) + &task("floods", "floods", "");
    let host = limited(directory.path(), "ulimit -v 8388608", &toml);
    host.until("all starts", || {
        let tasks = host.tasks();
        let is_over = |task: &Object| task.state() != "starting";
        tasks.iter().all(is_over).then_some(())
    });
    let tasks = host.tasks();
    let failed = tasks
        .iter()
        .filter(|task| task.state() == "faulted")
        .count();
    assert!((1..60).contains(&failed), "{failed} of 64");
    // It can still do what needs memory.
    for _ in 0..3 {
        assert_eq!(host.tasks().len(), 65);
        let _ = host.http("GET", "/metrics");
    }
}

#[test]
fn a_log_file_that_may_not_grow_ends_nobody() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    // 64 KiB for a file; the log is to be sixteen times that.
    let log = "log = { file = \"web.log\", size = \"1MiB\", keep = 1 }";
    let toml = task("web", "floods", log) + &task("other", "waits", "");
    let mut host = limited(directory.path(), "ulimit -f 64", &toml);
    host.until_task("web.0", |task| task.number("console_bytes") > 1 << 20);
    let blocks = fs::metadata(directory.path().join("web.log"))
        .unwrap()
        .len();
    // Shells count in 512 or 1024 bytes.
    assert!(blocks <= 64 << 10, "{blocks}");
    host.until_task("other.0", |task| task.state() == "waiting");
    // The ring goes on without it.
    assert!(!host.ask(&["logs", "web", "--tail", "1"]).is_empty());
    host.signal(Signal::SIGTERM);
    assert_eq!(host.status(), 0);
}

/// Found by hand: the signal that such a write sends stayed pending on the worker, and no
/// guest of its ran again.
#[test]
fn a_disk_that_may_not_be_written_that_far_is_its_guests_misfortune() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let disk = directory.path().join("d.img");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let block = format!(
        "restart = \"never\"\n[[task.block]]\ndevice = \"data\"\nfile = \"{}\"",
        disk.display()
    );
    let toml = "[host]\nworkers = 1\n".to_owned()
        + &task("disk", app("disk").to_str().unwrap(), &block)
        + &task("other", "floods", "");
    let mut host = limited(directory.path(), "ulimit -f 64", &toml);
    let disk = host.until_task("disk.0", |task| task.optional("exit_status").is_some());
    assert_ne!(disk.optional("exit_status"), Some(0), "{disk:?}");
    let said = host.ask(&["logs", "disk"]);
    assert!(!said.contains("flushed"), "{said}");
    let written = host.task("other.0").number("console_bytes");
    host.until_task("other.0", |task| {
        task.number("console_bytes") > written + (1 << 20)
    });
    host.signal(Signal::SIGTERM);
    assert_eq!(host.status(), 0);
}

#[test]
fn who_may_not_make_a_file_that_large_is_told() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let run = wharf(["run", "--block", "data=d.img,size=1MiB"]);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -f 64 && exec \"$0\" \"$@\""])
        .arg(run.get_program())
        .args(run.get_args())
        .arg(app("disk"))
        .current_dir(directory.path());
    let printed = output(&mut shell);
    assert_eq!(printed.status, 125, "{printed:?}");
    assert_eq!(printed.stderr.lines().count(), 1, "{printed:?}");
    assert!(printed.stderr.contains("d.img"), "{printed:?}");
}

/// A host whose standard error is this, in the foreground.
fn talking_to(stderr: std::io::PipeWriter, host: &Host) -> std::process::Child {
    let mut up = host.up_command(&["-vv"]);
    let child = up.stderr(stderr).spawn().unwrap();
    host.until("it serves", || UnixStream::connect(host.socket()).ok());
    child
}

#[test]
fn a_host_that_nobody_listens_to_goes_on_and_ends() {
    let Some(_) = kvm() else { return };
    for is_stuck in [false, true] {
        let directory = directory();
        let toml = task("bad", "crashes", "restart = \"always\"") + &task("good", "waits", "");
        let host = Host::new(directory.path(), &toml);
        let (reading, mut writing) = std::io::pipe().unwrap();
        let reading = if is_stuck {
            // As much as a pipe takes (pipe(7)): the next byte would wait for ever.
            writing.write_all(&[b'x'; 64 << 10]).unwrap();
            Some(reading)
        } else {
            None
        };
        let mut child = talking_to(writing, &host);
        // It talks of every one of these.
        host.until_task("bad.0", |task| task.number("restarts") >= 3);
        host.until_task("good.0", |task| task.state() == "waiting");
        host.signal(Signal::SIGTERM);
        assert_eq!(poll(|| status(&mut child)), Some(0));
        drop(reading);
    }
}

#[test]
fn a_host_ends_by_the_signals_that_it_was_not_told_to_ignore() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let mut host = limited(
        directory.path(),
        "trap '' HUP",
        &task("good", "waits", "restart = \"never\""),
    );
    host.until_task("good.0", |task| task.state() == "waiting");
    host.signal(Signal::SIGHUP);
    // Another life begins and ends after that signal was there to be heard.
    let _ = host.ask(&["restart", "good"]);
    host.until_task("good.0", |task| {
        task.number("generation") == 2 && task.state() == "waiting"
    });
    host.signal(Signal::SIGTERM);
    assert_eq!(host.status(), 0);
}

#[test]
fn a_detached_host_keeps_no_file_that_grows() {
    let Some(_) = kvm() else { return };
    let directory = directory();
    let toml = task("good", "waits", "");
    let host = Host::new(directory.path(), &toml);
    let up = wharf_tests::command::output(&mut host.up_command(&["--detach"]));
    assert_eq!(up.status, 0, "{up:?}");
    let pid = host.pid().unwrap();
    let stderr = host.until("it lets go", || {
        let stderr = fs::read_link(format!("/proc/{pid}/fd/2")).unwrap();
        stderr.ends_with("null").then_some(stderr)
    });
    assert_eq!(stderr, Path::new("/dev/null"));
    let _ = host.ask(&["down"]);
}
