//! Frames, as operators and guests have them: real guests on the switch of a real host,
//! and guests of a few instructions that send what they should not.

use std::fs;
use std::path::Path;

use wharf_tests::command::{app, output, wharf};
use wharf_tests::frames::{deaf, flooder};
use wharf_tests::guest::kvm;
use wharf_tests::host::Host;
use wharf_tests::process::memory_kib;

/// A task that pings another one so often, or only answers.
fn ping(name: &str, own: &str, peer: &str, count: u32) -> String {
    format!(
        "[[task]]\nname = \"{name}\"\nimage = {:?}\nargs = [\"{own}/24\", \"{peer}\", \"{count}\"]\n",
        app("ping")
    )
}

/// A task of an image that a test made.
fn made(directory: &Path, name: &str, elf: &[u8]) -> String {
    let image = directory.join(format!("{name}.elf"));
    fs::write(&image, elf).unwrap();
    format!("[[task]]\nname = \"{name}\"\nimage = {image:?}\n")
}

/// Waits until the task that pings has ended, and says how.
fn ended(host: &Host, replica: &str) -> (u64, String) {
    let task = host.until_task(replica, |it| it.state() == "stopped");
    let name = replica.split('.').next().unwrap();
    (task.number("exit_status"), host.ask(&["logs", name]))
}

#[test]
fn tasks_ping_each_other() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let toml = ping("a", "10.0.0.1", "10.0.0.2", 0)
        + &ping("b", "10.0.0.2", "10.0.0.1", 20)
        + &ping("c", "10.0.0.3", "10.0.0.1", 20);
    let host = Host::up(directory.path(), &toml);
    for replica in ["b.0", "c.0"] {
        let (status, said) = ended(&host, replica);
        assert_eq!(status, 0, "{said}");
        assert!(said.contains("20: 10.0.0.1 answered in "), "{said}");
        assert!(said.contains("20 of 20 answered"), "{said}");
    }
    // The one that answers goes to another process, with its address and its port.
    let _ = host.ask(&["handover"]);
    let _ = host.ask(&["restart", "c"]);
    host.until_task("c.0", |it| it.number("generation") == 2);
    let (status, said) = ended(&host, "c.0");
    assert_eq!(status, 0, "{said}");
    assert_eq!(host.task("a.0").number("generation"), 1);
}

#[test]
fn alone_nobody_answers() {
    let Some(_) = kvm() else { return };
    let mut command = wharf(["run", "--timeout", "60s"]);
    command.arg(app("ping"));
    let printed = output(command.args(["--", "10.0.0.1/24", "10.0.0.2", "1"]));
    assert_eq!(printed.status, 1, "{printed:?}");
    assert!(printed.stdout.contains("0 of 1 answered"), "{printed:?}");
}

/// The first replica floods the switch in the name of the second, which the third pings:
/// were it believed, answers would go astray.
#[test]
fn who_speaks_for_another_is_not_heard() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let toml = made(directory.path(), "liar", &flooder(Some(1)))
        + &ping("a", "10.0.0.1", "10.0.0.2", 0)
        + &ping("b", "10.0.0.2", "10.0.0.1", 50);
    let host = Host::up(directory.path(), &toml);
    let (status, said) = ended(&host, "b.0");
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("50 of 50 answered"), "{said}");
    let liar = host.task("liar.0");
    assert_ne!(liar.state(), "faulted", "a lie is no fault");
    assert!(liar.number("sent_frames_dropped") > 0, "{liar:?}");
    assert_eq!(
        liar.number("received_frames_dropped"),
        0,
        "it listens to none"
    );
    for replica in ["a.0", "b.0"] {
        assert_eq!(host.task(replica).number("sent_frames_dropped"), 0);
    }
}

/// What nobody takes is kept up to a bound, and what does not fit harms nobody else.
#[test]
fn a_flood_does_not_grow_the_host() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let toml = made(directory.path(), "flood", &flooder(None))
        + &made(directory.path(), "deaf", &deaf())
        + &made(directory.path(), "mute", &deaf());
    let host = Host::up(directory.path(), &toml);
    let pid = host.pid().unwrap();
    // A quarter of a second of its own: far more frames than a port keeps.
    let ran = |ns: u64| host.until_task("flood.0", |it| it.number("run_ns") > ns);
    ran(250_000_000);
    let before = memory_kib(pid, "VmRSS");
    ran(1_000_000_000);
    let grown = memory_kib(pid, "VmRSS").saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB more");
    assert_eq!(host.task("flood.0").number("sent_frames_dropped"), 0);
    for replica in ["deaf.0", "mute.0"] {
        let dropped = host.task(replica).number("received_frames_dropped");
        assert!(dropped > 1000, "{replica} {dropped}");
        // What rings at its port wakes it for a moment.
        host.until_task(replica, |it| it.state() == "waiting");
    }
}
