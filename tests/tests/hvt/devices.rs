//! Disks and ports of a guest, asked by hypercall.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use wharf_abi::{Answer, Interest};
use wharf_machine::device::{Backend, Frames, Mac, REQUEST_MAX, Way, Wire};
use wharf_machine::fault::Cause;
use wharf_machine::image::Image;
use wharf_machine::{BootConfig, Call, Exit, Hypervisor, Machine, UserSlice};
use wharf_tests::disk::TestDisk;
use wharf_tests::elf::{CODE_ADDR, R};
use wharf_tests::guest::{End, Run, assemble, kvm, run_machine};
use wharf_tests::hvt::{
    BLOCK, BLOCK_READ, BLOCK_WRITE, HvtBuilder, NET, NET_READ, NET_WRITE, POLL, call_with, halt,
    puts, puts_stack,
};

const MEMORY: u64 = 16 << 20;
const DATA: u64 = 0x50_0000;
const RODATA: u64 = 0x60_0000;
const HEAP: u64 = 0x80_0000;

/// Statuses of the contract.
const OK: u64 = 0;
const AGAIN: u64 = 1;
const INVALID: u64 = 2;
const UNSPECIFIED: u64 = 3;

/// Runs a guest with these devices.
fn run(kvm: &Hypervisor, code: &[u8], devices: Vec<(u32, &str, Backend)>) -> Run {
    let builder = HvtBuilder::guest(code)
        .data(DATA, &[7; 8192])
        .segment(RODATA, R, &[9; 4096], 4096);
    let builder = devices.iter().fold(builder, |builder, (kind, name, _)| {
        builder.device(*kind, name)
    });
    let image = Image::parse(builder.build()).unwrap();
    let config = BootConfig {
        memory: MEMORY,
        ..BootConfig::default()
    };
    let backends = devices.into_iter().map(|(_, _, backend)| backend).collect();
    run_machine(Machine::boot(kvm, &image, &config, backends).unwrap())
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

/// Has a guest with this disk make one call, and returns what it is told.
fn transfer(
    kvm: &Hypervisor,
    disk: &TestDisk,
    number: u16,
    arguments: [u64; 4],
) -> Result<u64, End> {
    let code = assemble(|a| {
        let [handle, offset, data, len] = arguments;
        call_with(a, number, &[handle, offset, data, len, u64::MAX])?;
        puts_stack(a, 5)?;
        halt(a, 0)
    });
    let backend = Backend::Block(Box::new(disk.clone()));
    let run = run(kvm, &code, vec![(BLOCK, "storage", backend)]);
    if run.end != End::Exited(0) {
        return Err(run.end);
    }
    let words = words(&run.console);
    assert_eq!(words[..4], arguments, "arguments stay as they are");
    assert_eq!(
        words[4] >> 32,
        u64::from(u32::MAX),
        "nothing behind the status is written"
    );
    Ok(words[4] & u64::from(u32::MAX))
}

#[test]
fn blocks_go_to_a_disk_and_come_back() {
    let Some(kvm) = kvm() else { return };
    let disk = TestDisk::new(8192, 3);
    assert_eq!(
        transfer(&kvm, &disk, BLOCK_WRITE, [1, 512, DATA, 1024]),
        Ok(OK)
    );
    let mut expected = [3; 8192];
    expected[512..1536].fill(7);
    assert_eq!(disk.bytes(), expected);
    // From read-only memory it can be written, too.
    assert_eq!(
        transfer(&kvm, &disk, BLOCK_WRITE, [1, 7680, RODATA, 512]),
        Ok(OK)
    );
    expected[7680..].fill(9);
    assert_eq!(disk.bytes(), expected);

    let code = assemble(|a| {
        call_with(a, BLOCK_READ, &[1, 0, DATA + 512, 2048, 0])?;
        puts(a, DATA, 4096)?;
        halt(a, 0)
    });
    let backend = Backend::Block(Box::new(disk.clone()));
    let run = run(&kvm, &code, vec![(BLOCK, "storage", backend)]);
    let mut memory = [7; 4096];
    memory[512..2560].copy_from_slice(&expected[..2048]);
    assert_eq!(run.console, memory);
}

/// The last block, and memory up to its end; nothing further, and nothing uneven.
#[test]
fn bounds_of_a_disk_are_exact() {
    let Some(kvm) = kvm() else { return };
    let disk = TestDisk::new(8 << 20, 0);
    let end = 8 << 20;
    #[rustfmt::skip]
    let asked: &[([u64; 4], u64)] = &[
        ([1, 0, DATA, 512], OK),
        ([1, 0, DATA, 0], OK),
        ([1, end - 512, DATA, 512], OK),
        ([1, 0, DATA, 8192], OK),
        ([1, end - 4096, MEMORY - 4096 - 512, 4096], OK),
        ([1, 4096, HEAP, REQUEST_MAX], OK),
        ([1, 4096, HEAP, REQUEST_MAX + 512], INVALID),
        ([1, end, DATA, 512], INVALID),
        ([1, end, DATA, 0], INVALID),
        ([1, end - 512, DATA, 1024], INVALID),
        ([1, 1, DATA, 512], INVALID),
        ([1, 0, DATA, 511], INVALID),
        ([1, 0, DATA, 513], INVALID),
        ([1, u64::MAX - 511, DATA, 512], INVALID),
        ([1, u64::MAX - 511, DATA, 1024], INVALID),
        ([1, 1 << 63, DATA, 512], INVALID),
        ([1, 512, DATA, u64::MAX - 511], INVALID),
        ([1, 512, DATA, u64::MAX], INVALID),
        // No such device, whatever else is asked.
        ([0, 0, DATA, 512], INVALID),
        ([2, 0, DATA, 512], INVALID),
        ([63, 0, DATA, 512], INVALID),
        ([64, 0, DATA, 512], INVALID),
        ([1 << 32 | 1, 0, DATA, 512], INVALID),
        ([u64::MAX, 0, 0, u64::MAX], INVALID),
    ];
    for (arguments, status) in asked {
        for number in [BLOCK_READ, BLOCK_WRITE] {
            let told = transfer(&kvm, &disk, number, *arguments);
            assert_eq!(told, Ok(*status), "call {number}: {arguments:x?}");
        }
    }
}

#[test]
fn a_buffer_is_memory_that_the_guest_may_use_so() {
    let Some(kvm) = kvm() else { return };
    let disk = TestDisk::new(8192, 3);
    #[rustfmt::skip]
    let buffers: &[(u16, u64)] = &[
        (BLOCK_READ, 0), (BLOCK_READ, 0x1000), (BLOCK_READ, 0x2000), (BLOCK_READ, 0x1_0000),
        (BLOCK_READ, RODATA), (BLOCK_READ, CODE_ADDR), (BLOCK_READ, RODATA - 256),
        (BLOCK_READ, MEMORY - 511), (BLOCK_READ, MEMORY), (BLOCK_READ, u64::MAX),
        (BLOCK_READ, u64::MAX - 510), (BLOCK_READ, 1 << 32 | DATA),
        (BLOCK_WRITE, 0), (BLOCK_WRITE, 0x1000), (BLOCK_WRITE, 0x2000), (BLOCK_WRITE, 0xFFFF),
        (BLOCK_WRITE, MEMORY - 511), (BLOCK_WRITE, MEMORY), (BLOCK_WRITE, u64::MAX),
    ];
    for (number, addr) in buffers {
        let told = transfer(&kvm, &disk, *number, [1, 0, *addr, 512]);
        let slice = UserSlice {
            addr: *addr,
            len: 512,
        };
        let fault = End::Fault(Cause::BadPointer(slice));
        assert_eq!(told, Err(fault), "call {number} at {addr:#x}");
    }
    assert_eq!(disk.served(), 0, "nothing was begun");
}

#[test]
fn a_disk_that_fails_is_the_guests_to_see() {
    let Some(kvm) = kvm() else { return };
    for number in [BLOCK_READ, BLOCK_WRITE] {
        for errno in [libc_eio(), libc_enospc()] {
            let disk = TestDisk::new(4096, 0).failing(errno);
            assert_eq!(
                transfer(&kvm, &disk, number, [1, 0, DATA, 512]),
                Ok(UNSPECIFIED)
            );
        }
    }
    let disk = TestDisk::new(4096, 0).read_only();
    assert_eq!(transfer(&kvm, &disk, BLOCK_READ, [1, 0, DATA, 512]), Ok(OK));
    assert_eq!(
        transfer(&kvm, &disk, BLOCK_WRITE, [1, 0, DATA, 512]),
        Ok(UNSPECIFIED)
    );
    assert_eq!(disk.bytes(), [0; 4096]);
}

fn libc_eio() -> i32 {
    nix::errno::Errno::EIO as i32
}

fn libc_enospc() -> i32 {
    nix::errno::Errno::ENOSPC as i32
}

/// As many as a manifest can have: each has its own handle, and the last one is 63.
#[test]
fn a_guest_may_have_63_devices() {
    let Some(kvm) = kvm() else { return };
    let disks: Vec<TestDisk> = (0..63).map(|n| TestDisk::new(512, n)).collect();
    let names: Vec<String> = (1..=63).map(|n| format!("storage{n}")).collect();
    let devices = names.iter().zip(&disks).map(|(name, disk)| {
        let backend = Backend::Block(Box::new(disk.clone()));
        (BLOCK, name.as_str(), backend)
    });
    let code = assemble(|a| {
        for handle in 1..=63 {
            call_with(a, BLOCK_READ, &[handle, 0, DATA, 512, 0])?;
            puts(a, DATA, 1)?;
        }
        call_with(a, BLOCK_READ, &[64, 0, DATA, 512, u64::MAX])?;
        puts_stack(a, 5)?;
        halt(a, 0)
    });
    let run = run(&kvm, &code, devices.collect());
    assert_eq!(run.end, End::Exited(0));
    let (read, last) = run.console.split_at(63);
    assert_eq!(read, (0..63).collect::<Vec<u8>>());
    assert_eq!(words(last)[4], u64::from(u32::MAX) << 32 | INVALID);
}

/// A wire that is a script. As at a tap interface, nothing is received that was not
/// looked for, nor what arrived before it was opened.
#[derive(Clone, Debug)]
struct TestWire {
    arrives: Arc<Mutex<VecDeque<Vec<u8>>>>,
    /// Of these, how many were seen.
    seen: Arc<Mutex<usize>>,
    opened: Arc<Mutex<usize>>,
    took: Arc<Mutex<Vec<Vec<u8>>>>,
    dropped: Arc<Mutex<Vec<Way>>>,
    mtu: u16,
    fd: Arc<std::fs::File>,
}

impl TestWire {
    fn new(arrives: &[&[u8]]) -> Self {
        let arrives = arrives.iter().map(|frame| frame.to_vec()).collect();
        Self {
            arrives: Arc::new(Mutex::new(arrives)),
            seen: Arc::default(),
            opened: Arc::default(),
            mtu: 1500,
            took: Arc::default(),
            dropped: Arc::default(),
            fd: Arc::new(tempfile::tempfile().unwrap()),
        }
    }

    fn with_mtu(mtu: u16) -> Self {
        Self {
            mtu,
            ..Self::new(&[])
        }
    }

    fn opened(&self) -> usize {
        *self.opened.lock().unwrap()
    }

    fn backend(&self) -> Backend {
        Backend::Net(Box::new(Frames::new(Box::new(self.clone()))))
    }
}

impl Wire for TestWire {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn mac(&self) -> Mac {
        [2, 3, 4, 5, 6, 7]
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn open(&mut self) {
        *self.opened.lock().unwrap() += 1;
    }

    fn has_looked(&mut self) {
        *self.seen.lock().unwrap() = self.arrives.lock().unwrap().len();
    }

    fn receive(&mut self) -> Option<Arc<[u8]>> {
        assert!(self.opened() > 0, "it is open");
        let mut seen = self.seen.lock().unwrap();
        *seen = seen.checked_sub(1)?;
        let frame = self.arrives.lock().unwrap().pop_front();
        frame.map(Arc::from)
    }

    fn send(&mut self, frame: &[u8]) {
        self.took.lock().unwrap().push(frame.to_vec());
    }

    fn was_dropped(&mut self, way: Way) {
        self.dropped.lock().unwrap().push(way);
    }

    fn carry(
        &mut self,
        _: &mut wharf_machine::handover::Luggage,
    ) -> std::io::Result<serde_json::Value> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// And its longest packet, of which there is none longer than the longest frame.
#[test]
fn a_port_says_its_address() {
    let Some(kvm) = kvm() else { return };
    let code = assemble(|a| {
        puts(a, 0x1_0000 + 56 + 8 + 104 + 72, 8)?;
        halt(a, 0)
    });
    for (mtu, told) in [
        (1500, 1500_u16),
        (1501, 1500),
        (9000, 1500),
        (1280, 1280),
        (68, 68),
    ] {
        let wire = TestWire::with_mtu(mtu);
        let run = run(&kvm, &code, vec![(NET, "service", wire.backend())]);
        let [low, high] = told.to_le_bytes();
        assert_eq!(run.console, [2, 3, 4, 5, 6, 7, low, high]);
    }
}

/// A guest that does not poll is told of a frame all the same.
#[test]
fn a_frame_need_not_be_waited_for() {
    let Some(kvm) = kvm() else { return };
    let wire = TestWire::new(&[&[1; 60]]);
    let code = assemble(|a| {
        call_with(a, NET_READ, &[1, DATA, 1514, u64::MAX])?;
        puts_stack(a, 4)?;
        call_with(a, NET_READ, &[1, DATA, 1514, u64::MAX])?;
        puts_stack(a, 4)?;
        halt(a, 0)
    });
    let run = run(&kvm, &code, vec![(NET, "service", wire.backend())]);
    let max = u64::from(u32::MAX) << 32;
    assert_eq!(
        words(&run.console),
        [1, DATA, 60, max | OK, 1, DATA, 1514, max | AGAIN]
    );
}

/// Sends, looks and polls, so often.
fn busy(times: usize) -> Vec<u8> {
    assemble(|a| {
        for _ in 0..times {
            call_with(a, NET_WRITE, &[1, DATA, 60, u64::MAX])?;
            puts_stack(a, 4)?;
            call_with(a, NET_READ, &[1, DATA, 1514, u64::MAX])?;
            puts_stack(a, 4)?;
            call_with(a, POLL, &[0, 0, 0])?;
            puts_stack(a, 3)?;
        }
        halt(a, 0)
    })
}

fn booted(kvm: &Hypervisor, code: &[u8], wire: &TestWire) -> Machine {
    let builder = HvtBuilder::guest(code).data(DATA, &[7; 2048]);
    let image = Image::parse(builder.device(NET, "service").build()).unwrap();
    let config = BootConfig {
        memory: MEMORY,
        ..BootConfig::default()
    };
    Machine::boot(kvm, &image, &config, vec![wire.backend()]).unwrap()
}

#[test]
fn a_guest_listens_from_its_first_step_on() {
    let Some(kvm) = kvm() else { return };
    let wire = TestWire::new(&[&[1; 60]]);
    let mut machine = booted(&kvm, &busy(1), &wire);
    assert_eq!(wire.opened(), 0, "nothing has run");
    let _ = machine.enter(None).unwrap();
    assert_eq!(wire.opened(), 1);
    let _ = run_machine(machine);
    assert_eq!(wire.opened(), 1, "and not again");
}

/// One that is to take another's place is on no wire before it has it, and then on its
/// own: nothing that it sends gets there, and of what is there it hears nothing.
#[test]
fn an_heir_is_on_no_wire_before_it_is_in_place() {
    let Some(kvm) = kvm() else { return };
    let wire = TestWire::new(&[&[1; 60], &[2; 61]]);
    let mut machine = booted(&kvm, &busy(2), &wire);
    machine.hold_wires();
    let mut console = Vec::new();
    let mut polls = 0;
    let mut answer = None;
    while polls < 2 {
        answer = match machine.enter(answer).unwrap() {
            Exit::Again | Exit::Interrupted => None,
            Exit::Call(Call::ConsoleWrite(slice)) => {
                console.extend(machine.read_user(slice).unwrap());
                Some(Answer::ok(slice.len))
            }
            Exit::Call(Call::Wait { .. }) => {
                polls += 1;
                if polls == 1 {
                    assert_eq!(machine.serve().unwrap().ready, Interest::NONE);
                    assert_eq!((wire.opened(), wire.took.lock().unwrap().len()), (0, 0));
                    assert_eq!(*wire.dropped.lock().unwrap(), [Way::FromGuest]);
                    machine.own_wires();
                    assert_eq!(wire.opened(), 1, "though it may wait for long");
                    assert_eq!(machine.serve().unwrap().ready, Interest::DEVICES);
                }
                Some(Answer::ok(Interest::TIMER.bits()))
            }
            other => panic!("{other:?}"),
        };
    }
    let max = u64::from(u32::MAX) << 32;
    let first = [1, DATA, 60, max | OK, 1, DATA, 1514, max | AGAIN, 0, 2, 1];
    let second = [1, DATA, 60, max | OK, 1, DATA, 60, max | OK];
    assert_eq!(words(&console), [&first[..], &second].concat());
    assert_eq!(*wire.took.lock().unwrap(), [[7; 60]]);
}

#[test]
fn frames_are_sent_as_they_are_when_they_are_frames() {
    let Some(kvm) = kvm() else { return };
    let wire = TestWire::new(&[]);
    let mut sent = Vec::new();
    #[rustfmt::skip]
    let asked: &[(u64, u64, u64, u64)] = &[
        (1, DATA, 14, OK), (1, DATA, 1514, OK), (1, RODATA, 60, OK), (1, MEMORY - 64, 64, OK),
        (1, DATA, 13, INVALID), (1, DATA, 1515, INVALID), (1, DATA, 0, INVALID),
        (1, DATA, u64::MAX, INVALID), (0, DATA, 60, INVALID), (2, DATA, 60, INVALID),
        (3, DATA, 60, INVALID), (u64::MAX, DATA, 60, INVALID),
    ];
    for (handle, data, len, status) in asked {
        let code = assemble(|a| {
            call_with(a, NET_WRITE, &[*handle, *data, *len, u64::MAX])?;
            puts_stack(a, 4)?;
            halt(a, 0)
        });
        let disk = Backend::Block(Box::new(TestDisk::new(512, 0)));
        let devices = vec![(NET, "service", wire.backend()), (BLOCK, "disk", disk)];
        let run = run(&kvm, &code, devices);
        let told = words(&run.console);
        assert_eq!(told[..3], [*handle, *data, *len]);
        assert_eq!(
            told[3],
            u64::from(u32::MAX) << 32 | status,
            "{handle} {data:#x} {len}"
        );
        if *status == OK {
            sent.push(usize::try_from(*len).unwrap());
        }
    }
    let took: Vec<usize> = wire.took.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(took, sent);
    // Of a device that is none nobody knows.
    assert_eq!(*wire.dropped.lock().unwrap(), [Way::FromGuest; 4]);
}

#[test]
fn frames_are_received_in_order_or_there_is_none() {
    let Some(kvm) = kvm() else { return };
    let (first, second, third) = ([1; 60], [2; 1514], [3; 14]);
    let wire = TestWire::new(&[&first, &second, &third]);
    let read = [1, DATA, 1514, u64::MAX];
    let code = assemble(|a| {
        // To see whether there is one takes none.
        call_with(a, POLL, &[0, 0, 0])?;
        puts_stack(a, 3)?;
        for _ in 0..2 {
            call_with(a, NET_READ, &read)?;
            puts_stack(a, 4)?;
        }
        puts(a, DATA, 1514)?;
        // One that does not fit is gone.
        call_with(a, NET_READ, &[1, DATA, 13, u64::MAX])?;
        puts_stack(a, 4)?;
        call_with(a, NET_READ, &read)?;
        puts_stack(a, 4)?;
        call_with(a, POLL, &[0, 0, 0])?;
        puts_stack(a, 3)?;
        for handle in [0, 2, 63, 64] {
            call_with(a, NET_READ, &[handle, DATA, 1514, u64::MAX])?;
            puts_stack(a, 4)?;
        }
        halt(a, 0)
    });
    let run = run(&kvm, &code, vec![(NET, "service", wire.backend())]);
    assert_eq!(run.end, End::Exited(0));
    assert_eq!(*wire.dropped.lock().unwrap(), [Way::ToGuest]);
    let max = u64::from(u32::MAX) << 32;
    let mut console = run.console.as_slice();
    let mut told = |len: usize| {
        let (now, rest) = console.split_at(len);
        console = rest;
        now.to_vec()
    };
    assert_eq!(words(&told(24)), [0, 1 << 1, 1]);
    assert_eq!(words(&told(32)), [1, DATA, 60, max | OK]);
    assert_eq!(words(&told(32)), [1, DATA, 1514, max | OK]);
    assert_eq!(told(1514), second);
    assert_eq!(words(&told(32)), [1, DATA, 13, max | INVALID]);
    assert_eq!(words(&told(32)), [1, DATA, 1514, max | AGAIN]);
    assert_eq!(words(&told(24)), [0, 0, 0]);
    for handle in [0, 2, 63, 64] {
        assert_eq!(words(&told(32)), [handle, DATA, 1514, max | INVALID]);
    }
}

#[test]
fn a_frame_goes_only_where_the_guest_may_write() {
    let Some(kvm) = kvm() else { return };
    for (number, addr, len) in [
        (NET_READ, 0, 1514),
        (NET_READ, RODATA, 1514),
        (NET_READ, CODE_ADDR, 1514),
        (NET_READ, MEMORY - 1513, 1514),
        (NET_READ, DATA, MEMORY),
        (NET_READ, DATA, u64::MAX),
        (NET_WRITE, 0, 60),
        (NET_WRITE, MEMORY - 59, 60),
        (NET_WRITE, u64::MAX, 60),
    ] {
        let wire = TestWire::new(&[&[1; 60]]);
        let code = assemble(|a| {
            call_with(a, number, &[1, addr, len, 0])?;
            halt(a, 0)
        });
        let run = run(&kvm, &code, vec![(NET, "service", wire.backend())]);
        let fault = End::Fault(Cause::BadPointer(UserSlice { addr, len }));
        assert_eq!(run.end, fault, "call {number}");
        assert!(wire.took.lock().unwrap().is_empty());
    }
}

/// Which of its ports has a frame is told by the bits of their handles; disks have none.
#[test]
fn a_poll_says_which_ports_have_frames() {
    let Some(kvm) = kvm() else { return };
    let code = assemble(|a| {
        call_with(a, POLL, &[0, 0, 0])?;
        puts_stack(a, 3)?;
        halt(a, 0)
    });
    let disk = Backend::Block(Box::new(TestDisk::new(512, 0)));
    let (full, empty) = (TestWire::new(&[&[1; 60]]), TestWire::new(&[]));
    let devices = vec![
        (NET, "n1", full.backend()),
        (BLOCK, "b2", disk),
        (NET, "n3", empty.backend()),
        (NET, "n4", full.backend()),
    ];
    full.arrives.lock().unwrap().push_back(vec![2; 60]);
    let mut run = run(&kvm, &code, devices);
    assert_eq!(words(&run.console), [0, 1 << 1 | 1 << 4, 2]);
    assert_eq!(run.waits.len(), 1);
    // What was seen is not lost for the host, either.
    assert_eq!(run.machine.serve().unwrap().ready, Interest::DEVICES);
    assert_eq!(run.machine.device_fds().count(), 3);
}
