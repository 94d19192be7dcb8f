//! Guests that take each other's place: who is on the wire meanwhile, and guests of both
//! contracts in turn.

use std::fs;
use std::path::{Path, PathBuf};

use iced_x86::code_asm::{
    dword_ptr, eax, ecx, qword_ptr, r12, r13, rax, rbx, rcx, rdi, rdx, rsi, rsp, word_ptr,
};
use wharf_abi::hypercall::FOREVER;
use wharf_abi::upgrade::HandOver;
use wharf_abi::{Hypercall, Interest};
use wharf_tests::command::policy;
use wharf_tests::elf::ElfBuilder;
use wharf_tests::guest::{self, assemble, kvm};
use wharf_tests::host::Host;
use wharf_tests::hvt::{HvtBuilder, NET, NET_READ, NET_WRITE, POLL, call_with, halt, puts};
use zerocopy::IntoBytes;

const DATA: u64 = 0x60_0000;
const FRAME: u64 = DATA;
const EARLY: u64 = DATA + 64;
const TEXT: u64 = DATA + 128;
const RECEIVED: u64 = DATA + 0x800;

/// A broadcast with this word in it, in which the source's address is missing.
fn frame(word: &[u8; 4]) -> Vec<u8> {
    [&[0xFF; 6][..], &[0; 6], b"\x88\xb5", word, &[0; 46]].concat()
}

/// Broadcasts its word 50 times a second. One that takes a while to start broadcasts
/// `bad` for a quarter of a second before, and says then whether it has heard anything.
fn speaker(word: &[u8; 4], takes_a_while: bool) -> HvtBuilder {
    let code = assemble(|a| {
        a.mov(r12, rdi)?;
        for frame in [FRAME, EARLY] {
            a.mov(rax, qword_ptr(r12 + 32))?;
            a.lea(rsi, qword_ptr(rax + 8 + 104 + 72))?;
            a.mov(rdi, frame + 6)?;
            a.mov(ecx, 6)?;
            a.rep().movsb()?;
        }
        if takes_a_while {
            let mut early = a.create_label();
            let mut heard = a.create_label();
            let mut on = a.create_label();
            a.rdtsc()?;
            a.shl(rdx, 32)?;
            a.or(rax, rdx)?;
            a.mov(r13, rax)?;
            a.mov(rbx, qword_ptr(r12 + 16))?;
            a.shr(rbx, 2)?;
            a.add(r13, rbx)?;
            a.set_label(&mut early)?;
            call_with(a, NET_WRITE, &[1, EARLY, 64, 0])?;
            a.add(rsp, 32)?;
            a.rdtsc()?;
            a.shl(rdx, 32)?;
            a.or(rax, rdx)?;
            a.cmp(rax, r13)?;
            a.jb(early)?;
            call_with(a, NET_READ, &[1, RECEIVED, 1514, 0])?;
            a.mov(eax, dword_ptr(rsp + 24))?;
            a.add(rsp, 32)?;
            a.cmp(eax, 1)?;
            a.jne(heard)?;
            puts(a, TEXT, 5)?;
            a.jmp(on)?;
            a.set_label(&mut heard)?;
            puts(a, TEXT + 5, 6)?;
            a.set_label(&mut on)?;
            a.nop()?;
        }
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        call_with(a, NET_WRITE, &[1, FRAME, 64, 0])?;
        call_with(a, POLL, &[20_000_000, 0, 0])?;
        a.add(rsp, 56)?;
        a.jmp(again)
    });
    let mut data = [frame(word), frame(b"bad\n"), b"deaf\nheard\n".to_vec()].concat();
    data.resize(4096, 0);
    HvtBuilder::guest(&code)
        .data(DATA, &data)
        .device(NET, "service")
}

/// Says each word that it hears.
fn listener() -> HvtBuilder {
    let code = assemble(|a| {
        let mut again = a.create_label();
        let mut next = a.create_label();
        a.set_label(&mut again)?;
        call_with(a, POLL, &[u64::MAX, 0, 0])?;
        a.add(rsp, 24)?;
        a.set_label(&mut next)?;
        call_with(a, NET_READ, &[1, RECEIVED, 1514, 0])?;
        a.mov(eax, dword_ptr(rsp + 24))?;
        a.add(rsp, 32)?;
        a.cmp(eax, 0)?;
        a.jne(again)?;
        a.mov(rcx, RECEIVED)?;
        a.cmp(word_ptr(rcx + 12), 0xB588)?;
        a.jne(next)?;
        puts(a, RECEIVED + 14, 4)?;
        a.jmp(next)
    });
    HvtBuilder::guest(&code)
        .data(DATA, &[0; 4096])
        .device(NET, "service")
}

fn write(directory: &Path, name: &str, image: &[u8]) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, image).unwrap();
    path
}

/// A host with a listener and a speaker, and the speaker's next version.
fn speaking(directory: &Path, head: &str) -> (Host, PathBuf) {
    let one = write(directory, "1.hvt", &speaker(b"one\n", false).build());
    let two = write(directory, "2.hvt", &speaker(b"two\n", true).build());
    let ear = write(directory, "ear.hvt", &listener().build());
    let toml = format!(
        "{head}\n[host]\nworkers = 2\n\
         [[task]]\nname = \"ear\"\nimage = {ear:?}\nmemory = \"8MiB\"\n\
         [[task]]\nname = \"web\"\nimage = {one:?}\nmemory = \"8MiB\"\n"
    );
    let host = Host::up(directory, &toml);
    host.until("it is heard", || {
        host.ask(&["logs", "ear"]).contains("one").then_some(())
    });
    (host, two)
}

/// What was heard, a word for as long as there was no other.
fn heard(host: &Host) -> Vec<String> {
    let log = host.ask(&["logs", "ear"]);
    let mut words: Vec<String> = log.lines().map(str::to_owned).collect();
    words.dedup();
    words
}

/// One is on the wire after the other: nothing of the new one's is heard before it is in
/// place, nor does it hear anything, and nothing of the old one's after that.
#[test]
fn the_wire_goes_over_with_the_place() {
    if kvm().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (host, two) = speaking(directory.path(), "");
    let _ = host.ask(&["upgrade", "web", "--image", two.to_str().unwrap()]);
    host.until("the new one is heard", || {
        (heard(&host) == ["one", "two"]).then_some(())
    });
    assert!(host.ask(&["logs", "web"]).contains("deaf"));
    let web = host.task("web.0");
    assert!(web.number("sent_frames_dropped") > 0, "{web:?}");
    let _ = host.ask(&["rollback", "web"]);
    host.until("the one before is heard", || {
        (heard(&host) == ["one", "two", "one"]).then_some(())
    });
}

/// When both are to serve, both are on the wire.
#[test]
fn who_runs_beside_another_is_on_the_wire_beside_it() {
    if kvm().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let plugin = policy("blue-green");
    let head = format!("[policy.upgrader]\nplugin = {plugin:?}\nconfig = {{ period = \"1s\" }}\n");
    let (host, two) = speaking(directory.path(), &head);
    let _ = host.ask(&["upgrade", "web", "--image", two.to_str().unwrap()]);
    host.until("the new one is heard alone", || {
        let log = host.ask(&["logs", "ear"]);
        let last: Vec<&str> = log.lines().rev().take(20).collect();
        last.iter().all(|word| *word == "two").then_some(())
    });
    let words = heard(&host);
    assert!(words.contains(&"bad".to_owned()), "{words:?}");
    let both = words.windows(3).any(|it| it == ["two", "one", "two"]);
    assert!(both, "{words:?}");
    assert!(host.ask(&["logs", "web"]).contains("heard"));
}

/// Says a word and waits, by wharf's own contract.
fn native(word: &[u8; 4]) -> Vec<u8> {
    let code = assemble(|a| {
        guest::call(a, Hypercall::ConsoleWrite, DATA, 4)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        guest::call(a, Hypercall::Wait, FOREVER, 0)?;
        a.jmp(again)
    });
    ElfBuilder::guest(&code).data(DATA, word).build()
}

/// The same by Solo5's.
fn solo5(word: &[u8; 4]) -> Vec<u8> {
    let code = assemble(|a| {
        puts(a, DATA, 4)?;
        call_with(a, POLL, &[u64::MAX, 0, 0])?;
        halt(a, 1)
    });
    HvtBuilder::guest(&code).data(DATA, word).build()
}

/// Either contract's guest takes the place of the other's, and gives it back.
#[test]
fn guests_of_both_contracts_take_each_others_place() {
    if kvm().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let native = write(directory.path(), "native.elf", &native(b"own\n"));
    let solo5 = write(directory.path(), "solo5.hvt", &solo5(b"hvt\n"));
    let name = |path: &Path| path.to_str().unwrap().to_owned();
    for (first, next, words) in [
        (&native, &solo5, ["own", "hvt", "own"]),
        (&solo5, &native, ["hvt", "own", "hvt"]),
    ] {
        let toml = format!("[[task]]\nname = \"web\"\nimage = {first:?}\nmemory = \"8MiB\"\n");
        let host = Host::up(directory.path(), &toml);
        let said = |count: usize| {
            host.until("it says so", || {
                let log = host.ask(&["logs", "web"]);
                let said: Vec<&str> = log.lines().collect();
                (said == words[..count]).then_some(())
            });
            let web = host.until_task("web.0", |it| it.state() == "waiting");
            assert_eq!(web.number("generation"), count as u64);
        };
        said(1);
        let _ = host.ask(&["upgrade", "web", "--image", &name(next)]);
        said(2);
        let _ = host.ask(&["rollback", "web"]);
        said(3);
    }
}

/// State is for who can be given it: the one that has it goes on.
#[test]
fn a_guest_with_a_state_is_not_succeeded_by_one_that_knows_of_none() {
    if kvm().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let solo5 = write(directory.path(), "solo5.hvt", &solo5(b"hvt\n"));
    let header = HandOver {
        connections: 0,
        reserved: 0,
        state_len: 4,
    };
    let code = assemble(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        guest::call(a, Hypercall::Wait, FOREVER, Interest::UPGRADE.bits())?;
        guest::call(a, Hypercall::HandOver, DATA, 20)?;
        guest::call(a, Hypercall::ConsoleWrite, DATA + 16, 4)?;
        a.jmp(again)
    });
    let block = [header.as_bytes(), b"own\n"].concat();
    let native = ElfBuilder::guest(&code).data(DATA, &block).build();
    let native = write(directory.path(), "native.elf", &native);
    let toml = format!("[[task]]\nname = \"web\"\nimage = {native:?}\n");
    let host = Host::up(directory.path(), &toml);
    host.until_task("web.0", |it| it.state() == "waiting");
    let refused = host.try_ask(&["upgrade", "web", "--image", solo5.to_str().unwrap()]);
    let told = refused.refusal();
    assert!(told.contains("the new version faulted"), "{told}");
    let faulted = host.until_event("web.0", "faulted", 0);
    let why = faulted.text("detail");
    assert!(why.contains("cannot be given the state"), "{why}");
    host.until("it goes on", || {
        (host.ask(&["logs", "web"]) == "own\n").then_some(())
    });
    let web = host.until_task("web.0", |it| it.state() == "waiting");
    assert_eq!(web.number("generation"), 1, "{told}");
}
