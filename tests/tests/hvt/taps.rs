//! Guests on tap interfaces, in a network of each test's own.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use iced_x86::code_asm::{
    al, cx, dword_ptr, dx, eax, ecx, esp, qword_ptr, rax, rcx, rdi, rsi, word_ptr,
};
use wharf_tests::command::{output, wharf};
use wharf_tests::guest::{assemble, kvm};
use wharf_tests::host::{Host, Object, poll};
use wharf_tests::hvt::{
    HALT, HvtBuilder, NET, NET_READ, NET_WRITE, POLL, PORT_BASE, call_with, halt, puts,
};
use wharf_tests::tap::{TAP, arrived, ip, with_tap};

const DATA: u64 = 0x60_0000;
const RECEIVED: u64 = DATA + 0x400;

/// Ports of the machine's and of the guest's.
const TO_MACHINE: u16 = 9999;
const TO_GUEST: u16 = 7777;

/// Where the manifest that the guest finds has its first device's address and MTU.
const MAC_AT: i32 = 8 + 104 + 72;
const MTU_AT: i32 = MAC_AT + 6;

/// A datagram for the machine in a broadcast, in which the source's address is missing.
fn datagram(text: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(8 + text.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend((20 + udp_len).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
    let words = packet.chunks(2);
    let sum: u32 = words
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    let folded = (sum & 0xFFFF) + (sum >> 16);
    let checksum = !u16::try_from(folded).unwrap();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    // The datagram's own checksum may be left out (RFC 768).
    for word in [9, TO_MACHINE, udp_len, 0] {
        packet.extend(word.to_be_bytes());
    }
    [&[0xFF; 6][..], &[0; 6], &[8, 0], &packet, text].concat()
}

/// Sends a datagram every 50 ms, until one comes for it; says what is in that, and ends.
fn talker() -> HvtBuilder {
    let frame = datagram(b"from an hvt guest");
    let len = frame.len() as u64;
    let code = assemble(|a| {
        a.mov(rax, qword_ptr(rdi + 32))?;
        a.lea(rsi, qword_ptr(rax + MAC_AT))?;
        a.mov(rdi, DATA + 6)?;
        a.mov(ecx, 6)?;
        a.rep().movsb()?;
        let mut again = a.create_label();
        let mut next = a.create_label();
        a.set_label(&mut again)?;
        call_with(a, NET_WRITE, &[1, DATA, len, 0])?;
        call_with(a, POLL, &[50_000_000, 0, 0])?;
        a.set_label(&mut next)?;
        call_with(a, NET_READ, &[1, RECEIVED, 1514, 0])?;
        // The status is behind three words.
        a.mov(eax, dword_ptr(esp + 24))?;
        a.cmp(al, 0)?;
        a.jne(again)?;
        a.mov(rcx, RECEIVED)?;
        a.cmp(word_ptr(rcx + 36), i32::from(TO_GUEST.swap_bytes()))?;
        a.jne(next)?;
        puts(a, RECEIVED + 42, 5)?;
        halt(a, 0)
    });
    HvtBuilder::guest(&code)
        .data(DATA, &[frame, vec![0; 4096]].concat()[..4096])
        .device(NET, "service")
}

/// A task that runs it on the tap interface, and what else is said of that.
fn talking(directory: &Path, more: &str) -> String {
    let image = directory.join("talker.hvt");
    fs::write(&image, talker().build()).unwrap();
    format!(
        "[[task]]\nname = \"web\"\nimage = {image:?}\n{more}\n\
         [[task.net]]\ndevice = \"service\"\ntap = {TAP:?}\n"
    )
}

#[test]
fn bytes_go_both_ways_between_a_guest_and_the_machine() {
    if kvm().is_none() {
        return;
    }
    with_tap(|| {
        let directory = tempfile::tempdir().unwrap();
        let toml = talking(directory.path(), "restart = \"never\"");
        let machine = UdpSocket::bind(("10.0.0.1", TO_MACHINE)).unwrap();
        machine
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        machine.set_broadcast(true).unwrap();
        let host = Host::up(directory.path(), &toml);
        for life in 1..=2 {
            // Another process has it by then, in the middle of a poll, most likely.
            let _ = host.ask(&["handover"]);
            let heard = poll(|| {
                let mut bytes = [0; 100];
                let (len, from) = machine.recv_from(&mut bytes).ok()?;
                assert_eq!(from.to_string(), "10.0.0.2:9");
                Some(bytes[..len].to_vec())
            });
            assert_eq!(heard.as_deref(), Some(&b"from an hvt guest"[..]));
            machine.send_to(b"hello", ("10.0.0.255", TO_GUEST)).unwrap();
            let ended = host.until_task("web.0", |it| {
                it.state() == "stopped" && it.number("generation") == life
            });
            assert_eq!(ended.optional("exit_status"), Some(0));
            assert_eq!(ended.number("sent_frames_dropped"), 0, "{ended:?}");
            assert!(host.ask(&["logs", "web"]).ends_with("hello"));
            // The next one has the interface from the one before.
            if life == 1 {
                let _ = host.ask(&["restart", "web"]);
            }
        }
    });
}

/// What goes nowhere is no fault of the guest's: it goes on, and is heard again.
#[test]
fn a_guest_outlives_its_interface() {
    if kvm().is_none() {
        return;
    }
    with_tap(|| {
        let directory = tempfile::tempdir().unwrap();
        let toml = talking(directory.path(), "");
        let host = Host::up(directory.path(), &toml);
        let until_arrived = |frames: u64| {
            host.until("frames", || (arrived(TAP) > frames).then_some(()));
        };
        let until_dropped = |frames: u64| {
            let dropped = |it: &Object| it.number("sent_frames_dropped");
            dropped(&host.until_task("web.0", |it| dropped(it) > frames))
        };
        until_arrived(2);
        ip(&format!("link set {TAP} down"));
        let dropped = until_dropped(2);
        ip(&format!("link set {TAP} up"));
        until_arrived(arrived(TAP) + 2);
        ip(&format!("link delete {TAP}"));
        until_dropped(dropped + 2);
        let web = host.task("web.0");
        assert_eq!(web.number("generation"), 1, "{web:?}");
        assert_eq!(web.state(), "waiting", "{web:?}");
    });
}

/// A guest is told what its interface carries, as far as a guest can send it.
#[test]
fn a_guest_is_told_the_longest_packet_of_its_interface() {
    if kvm().is_none() {
        return;
    }
    let code = assemble(|a| {
        a.mov(rax, qword_ptr(rdi + 32))?;
        // A sixteenth of it is a status.
        a.mov(ecx, 0)?;
        a.mov(cx, word_ptr(rax + MTU_AT))?;
        a.shr(ecx, 4)?;
        a.push(rcx)?;
        a.push(0)?;
        a.mov(eax, esp)?;
        a.mov(dx, u32::from(PORT_BASE + HALT))?;
        a.out(dx, eax)
    });
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("mtu.hvt");
    let builder = HvtBuilder::guest(&code).device(NET, "service");
    fs::write(&image, builder.build()).unwrap();
    let told = |net: &str| output(wharf(["run", "--net", net]).arg(&image)).status;
    assert_eq!(told("service=switch"), 1500 >> 4);
    with_tap(|| {
        for (mtu, expected) in [(1500, 1500), (1280, 1280), (576, 576), (9000, 1500)] {
            ip(&format!("link set {TAP} mtu {mtu}"));
            assert_eq!(told(&format!("service={TAP}")), expected >> 4, "{mtu}");
        }
    });
}
