//! Frames, as operators and guests have them: real guests on the switch of a real host,
//! and guests of a few instructions that send what they should not.

use std::fs;
use std::path::Path;

use iced_x86::code_asm::{ch, cx, dword_ptr, eax, ecx, qword_ptr, rax, rbx, rdi, rsi, word_ptr};
use wharf_abi::device::{
    DeviceSetup, FEATURE_EVENT_IDX, FEATURE_VERSION_1, QUEUES_MAX, QueueSetup, STATUS_DRIVER_OK,
};
use wharf_abi::hypercall::FOREVER;
use wharf_abi::net::{HEADER_LEN, QUEUE_RECEIVE, QUEUE_TRANSMIT};
use wharf_abi::{DeviceKind, Hypercall, Manifest};
use wharf_tests::command::{app, output, wharf};
use wharf_tests::elf::ElfBuilder;
use wharf_tests::guest::{assemble, call, kvm};
use wharf_tests::host::Host;
use wharf_tests::process::memory_kib;
use zerocopy::IntoBytes;

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

/// Everything that a made guest's rings are made of, in one writable segment.
const DESCRIPTORS: u64 = 0x50_0000;
const AVAILABLE: u64 = 0x50_1000;
const USED: u64 = 0x50_2000;
const PACKET: u64 = 0x50_3000;
const SETUP: u64 = 0x50_4000;
const END: u64 = 0x50_5000;

const SIZE: u32 = 256;
/// Frames that are sent between two waits.
const BURST: i32 = 128;
const FRAME_LEN: usize = 1000;

/// The memory of a guest with one queue, in which every entry of the ring is the same
/// broadcast.
fn rings(queue: u16) -> Vec<u8> {
    let mut memory = vec![0_u8; (END - DESCRIPTORS) as usize];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = (at - DESCRIPTORS) as usize;
        memory[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let mut queues = [QueueSetup::default(); QUEUES_MAX];
    queues[usize::from(queue)] = QueueSetup {
        size: SIZE,
        enabled: 1,
        descriptors: DESCRIPTORS,
        driver_area: AVAILABLE,
        device_area: USED,
    };
    let setup = DeviceSetup {
        status: STATUS_DRIVER_OK,
        reserved: 0,
        features: FEATURE_VERSION_1 | FEATURE_EVENT_IDX,
        queues,
    };
    put(DESCRIPTORS, &PACKET.to_le_bytes());
    let len = u32::try_from(HEADER_LEN + FRAME_LEN).unwrap();
    put(DESCRIPTORS + 8, &len.to_le_bytes());
    put(PACKET + HEADER_LEN as u64, &[0xFF; 6]);
    put(SETUP, setup.as_bytes());
    memory
}

/// A guest that sends broadcasts without an end: in the name of another replica, or in
/// its own.
fn flooder(as_replica: Option<u8>) -> Vec<u8> {
    let code = assemble(|a| {
        let mut again = a.create_label();
        // The device's page, and its address there, behind which the source is.
        a.mov(rax, qword_ptr(rdi + 152))?;
        a.mov(rbx, qword_ptr(rax + 40))?;
        a.mov(eax, dword_ptr(rbx + 24))?;
        a.mov(cx, word_ptr(rbx + 28))?;
        if let Some(replica) = as_replica {
            a.mov(ch, u32::from(replica))?;
        }
        a.mov(rdi, PACKET + HEADER_LEN as u64 + 6)?;
        a.mov(dword_ptr(rdi), eax)?;
        a.mov(word_ptr(rdi + 4), cx)?;
        a.lea(rdi, qword_ptr(rbx + 256))?;
        a.mov(rsi, SETUP)?;
        a.mov(ecx, 272)?;
        a.rep().movsb()?;
        a.set_label(&mut again)?;
        a.mov(rdi, AVAILABLE + 2)?;
        a.add(word_ptr(rdi), BURST)?;
        call(a, Hypercall::Wait, 0, 0)?;
        a.jmp(again)
    });
    image("flooder", &code, QUEUE_TRANSMIT)
}

/// A guest that listens and never gives the device a buffer.
fn deaf() -> Vec<u8> {
    let code = assemble(|a| {
        a.mov(rax, qword_ptr(rdi + 152))?;
        a.mov(rdi, qword_ptr(rax + 40))?;
        a.add(rdi, 256)?;
        a.mov(rsi, SETUP)?;
        a.mov(ecx, 272)?;
        a.rep().movsb()?;
        call(a, Hypercall::Wait, FOREVER, 0)?;
        a.ud2()
    });
    image("deaf", &code, QUEUE_RECEIVE)
}

fn image(name: &str, code: &[u8], queue: u16) -> Vec<u8> {
    let manifest = Manifest::new(name, "1").with_device(DeviceKind::Net, "lan");
    ElfBuilder::guest(code)
        .data(DESCRIPTORS, &rings(queue))
        .manifest(manifest)
        .build()
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
    for replica in ["deaf.0", "mute.0"] {
        // What rings at its port wakes it for a moment.
        host.until_task(replica, |it| it.state() == "waiting");
    }
}
