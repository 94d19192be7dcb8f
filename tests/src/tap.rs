//! A network of a test's own, with a tap interface in it.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use crate::command::{output, wharf_path};

/// The interface that each test's network has: up, and with an address, 10.0.0.1/24.
pub const TAP: &str = "tap0";

/// Runs a test in a network namespace of its own, where [`TAP`] is. What it starts is in
/// there, too; it reaches nothing else, so what it needs is built before. Where this
/// machine does not allow that, the test is skipped aloud, or with `REQUIRE_KVM=1`
/// fails.
///
/// # Panics
///
/// When the test does.
pub fn with_tap(test: impl FnOnce() + Send) {
    // Cargo may want the real network.
    let _ = wharf_path();
    thread::scope(|scope| {
        let test = scope.spawn(|| match network() {
            Ok(()) => test(),
            Err(why) => skip(&why),
        });
        if let Err(panic) = test.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Moves this thread into a network of its own.
fn network() -> Result<(), String> {
    if !Path::new("/dev/net/tun").exists() {
        return Err("there is no /dev/net/tun".to_owned());
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return Err("there is no `ip`: install iproute2".to_owned());
    }
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("no network namespace: {e}"))?;
    ip("link set lo up");
    make_tap(TAP);
    ip(&format!("address add 10.0.0.1/24 dev {TAP}"));
    Ok(())
}

fn skip(why: &str) {
    assert!(
        std::env::var_os("REQUIRE_KVM").is_none_or(|value| value != "1"),
        "REQUIRE_KVM=1, and {why}"
    );
    // Not `eprintln!`, which the test harness swallows when the test passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Makes a tap interface that is up.
///
/// # Panics
///
/// When that cannot be done.
pub fn make_tap(name: &str) {
    ip(&format!("tuntap add dev {name} mode tap"));
    // Nothing is on it but what a test sends.
    let quiet = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    let _ = std::fs::write(quiet, "1");
    ip(&format!("link set {name} up"));
}

/// Runs `ip` with these words and returns what it printed.
///
/// # Panics
///
/// When it fails.
pub fn ip(words: &str) -> String {
    let printed = output(Command::new("ip").args(words.split(' ')));
    assert_eq!(printed.status, 0, "ip {words}: {}", printed.stderr);
    printed.stdout
}

/// Frames that the machine has received from a tap interface.
///
/// # Panics
///
/// When there is no such interface.
#[must_use]
pub fn arrived(interface: &str) -> u64 {
    let json = ip(&format!("-j -s link show dev {interface}"));
    let links: Value = serde_json::from_str(&json).expect("it prints JSON");
    let packets = links[0]["stats64"]["rx"]["packets"].as_u64();
    packets.unwrap_or_else(|| panic!("no packets in {json}"))
}
