//! Versions that want to harm with a hand-over, and what becomes of them: each outcome is
//! one line, and the task goes on.

use std::fs;
use std::path::{Path, PathBuf};

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, byte_ptr, edi, qword_ptr, rax, rdi, rsi};
use wharf_abi::hypercall::FOREVER;
use wharf_abi::upgrade::{HandOver, STATE_MAX, UNREAD_MAX};
use wharf_abi::{Hypercall, Interest};
use wharf_tests::command::{output, wharf};
use wharf_tests::elf::ElfBuilder;
use wharf_tests::guest::{assemble, call, exit, kvm};
use wharf_tests::host::Host;
use zerocopy::IntoBytes;

/// Where a guest has the block that it hands over.
const BLOCK: u64 = 0x80_0000;

const UPGRADE: u64 = Interest::UPGRADE.bits();

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// An image of this code and block.
fn image(directory: &Path, name: &str, code: &[u8], block: &[u8]) -> PathBuf {
    let path = directory.join(name);
    let elf = ElfBuilder::guest(code).data(BLOCK, block).build();
    fs::write(&path, elf).unwrap();
    path
}

/// A version that waits until it is asked to hand over, and then does this.
fn asked(then: Code) -> Vec<u8> {
    assemble(|a| {
        call(a, Hypercall::Wait, FOREVER, UPGRADE)?;
        then(a)?;
        // Whoever goes on waits for nothing.
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        call(a, Hypercall::Wait, FOREVER, 0)?;
        a.jmp(again)
    })
}

fn header(connections: u32, reserved: u32, state_len: u64) -> Vec<u8> {
    let header = HandOver {
        connections,
        reserved,
        state_len,
    };
    header.as_bytes().to_vec()
}

fn hand_over_16(a: &mut CodeAssembler) -> Result<(), IcedError> {
    call(a, Hypercall::HandOver, BLOCK, 16)
}

/// What comes of an upgrade from a version to another: the one line that refuses it, and
/// the host.
fn refusal(old: &[u8], block: &[u8], new: &[u8]) -> (String, Host, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let first = image(directory.path(), "old.elf", old, block);
    let second = image(directory.path(), "new.elf", new, &[0]);
    let toml = format!("[[task]]\nname = \"it\"\nimage = {first:?}\n");
    let host = Host::up(directory.path(), &toml);
    let _ = host.until_task("it.0", |it| it.state() == "waiting");
    let printed = host.try_ask(&["upgrade", "it", "--image", second.to_str().unwrap()]);
    (printed.refusal().to_owned(), host, directory)
}

/// A version that serves at once and waits for ever.
fn quiet() -> Vec<u8> {
    assemble(|a| {
        a.nop()?;
        call(a, Hypercall::Wait, FOREVER, UPGRADE)
    })
}

#[test]
fn what_is_handed_over_is_bounded_and_checked() {
    let Some(_) = kvm() else { return };
    let too_much = UNREAD_MAX + 1;
    let mut unread = header(2, 0, 0);
    unread.extend([0; 8]);
    unread.extend((too_much as u32).to_le_bytes());
    unread.extend([0; 20]);
    for (block, len, why) in [
        (
            header(0, 0, STATE_MAX + 1),
            16,
            "its state has 1048577 bytes, and the most is 1048576",
        ),
        (
            header(1025, 0, 0),
            16,
            "1025 connections, and the most is 1024",
        ),
        (header(0, 1, 0), 16, "not laid out as the contract says"),
        (header(0, 0, 1), 16, "not laid out as the contract says"),
        (header(1, 0, 0), 16, "not laid out as the contract says"),
        (unread, 48, "unread bytes, and the most is 4194304"),
    ] {
        let old = assemble(|a| {
            call(a, Hypercall::Wait, FOREVER, UPGRADE)?;
            call(a, Hypercall::HandOver, BLOCK, len)?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            call(a, Hypercall::Wait, FOREVER, 0)?;
            a.jmp(again)
        });
        let (said, host, _directory) = refusal(&old, &block, &quiet());
        assert!(said.contains(why), "{said}");
        let task = host.until_task("it.0", |it| it.state() == "waiting");
        assert_eq!(task.number("generation"), 1);
        assert_eq!(host.tasks().len(), 1);
    }
}

#[test]
fn a_version_that_does_not_hand_over_is_left_where_it_is() {
    let Some(_) = kvm() else { return };
    let spin: Code = |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    };
    for (then, why, generation) in [
        (
            (|a| a.nop()) as Code,
            "the old version did not hand over within 2 s",
            1,
        ),
        (spin, "the old version did not hand over within 2 s", 1),
        (
            |a| call(a, Hypercall::HandOver, 0x10, 16),
            "the old version faulted meanwhile",
            3,
        ),
        (
            |a| call(a, Hypercall::HandOver, BLOCK, u64::MAX),
            "the old version faulted meanwhile",
            3,
        ),
        (
            |a| exit(a, 7),
            "the old version exited with status 7 meanwhile",
            3,
        ),
    ] {
        let (said, host, _directory) = refusal(&asked(then), &header(0, 0, 0), &quiet());
        assert!(said.contains(why), "{said}");
        // Its end is followed by what always follows one.
        let _ = host.until_task("it.0", |it| {
            it.number("generation") == generation
                && matches!(it.state(), "waiting" | "running" | "ready")
        });
        assert_eq!(host.tasks().len(), 1);
    }
}

#[test]
fn a_version_finds_what_the_one_before_it_left() {
    let Some(_) = kvm() else { return };
    let mut block = header(0, 0, 1);
    block.push(42);
    let old = asked(|a| call(a, Hypercall::HandOver, BLOCK, 17));
    // Its boot page is at RDI, and in it at 168 where the state is.
    let new = assemble(|a| {
        a.mov(rax, qword_ptr(rdi + 168))?;
        a.movzx(edi, byte_ptr(rax))?;
        a.out(i32::from(Hypercall::Exit.port()), al)
    });
    let (said, host, _directory) = refusal(&old, &block, &new);
    assert!(
        said.contains("the new version exited with status 42"),
        "{said}"
    );
    let task = host.until_task("it.0", |it| it.state() == "waiting");
    assert_eq!(task.number("generation"), 1);
}

#[test]
fn nobody_can_write_what_was_inherited() {
    let Some(_) = kvm() else { return };
    let mut block = header(0, 0, 1);
    block.push(42);
    let old = asked(|a| call(a, Hypercall::HandOver, BLOCK, 17));
    let new = assemble(|a| {
        a.mov(rsi, qword_ptr(rdi + 168))?;
        a.mov(byte_ptr(rsi), al)
    });
    let (said, _host, _directory) = refusal(&old, &block, &new);
    assert!(said.contains("the new version faulted"), "{said}");
}

#[test]
fn who_hands_over_unasked_is_told_so() {
    let Some(_) = kvm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let code = assemble(|a| {
        hand_over_16(a)?;
        // Status 1: invalid.
        a.mov(rdi, rax)?;
        a.out(i32::from(Hypercall::Exit.port()), al)
    });
    let image = image(directory.path(), "it.elf", &code, &header(0, 0, 0));
    let printed = output(wharf(["run"]).arg(image));
    assert_eq!(printed.status, 1, "{}", printed.stderr);
}
