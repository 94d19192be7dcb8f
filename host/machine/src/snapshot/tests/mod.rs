//! Guests that go on as others.

mod files;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use iced_x86::code_asm::{CodeAssembler, qword_ptr, rax, rcx, rdi};
use wharf_abi::{Answer, BootPage, DeviceKind, Manifest};
use zerocopy::FromBytes;

use super::{RestoreConfig, RestoreError, SaveError, Snapshot};
use crate::device::{Backend, Console, Input};
use crate::fault::Cause;
use crate::memory::{PAGE, u64_of};
use crate::testing::{
    BUFFER, COUNT, DATA, Frozen, USED, counter, disk, disk_driver, driver, image, kvm,
    to_served_wait, to_wait, wait, word,
};
use crate::{BootConfig, Buffers, Call, Exit, Hypervisor, Machine, UserSlice};

/// What the first clone gets.
const SECOND: RestoreConfig = RestoreConfig { generation: 2 };

fn boot(kvm: &Hypervisor, image: &crate::image::Image, backends: Vec<Backend>) -> Machine {
    let config = BootConfig {
        memory: 4 << 20,
        args: crate::Args::new(["one", "two"]).unwrap(),
        ..BootConfig::default()
    };
    Machine::boot(kvm, image, &config, backends).unwrap()
}

fn clone(kvm: &Hypervisor, snapshot: &Arc<Snapshot>, generation: u64) -> Machine {
    let config = RestoreConfig { generation };
    Machine::restore(kvm, snapshot, config, Vec::new()).unwrap()
}

fn boot_page(machine: &Machine) -> BootPage {
    let slice = UserSlice {
        addr: machine.layout().boot.addr,
        len: u64_of(size_of::<BootPage>()),
    };
    let bytes = machine.read_user(slice).unwrap();
    BootPage::read_from_bytes(&bytes).unwrap()
}

#[test]
fn a_guest_goes_on_where_it_was_and_so_does_the_one_it_was_taken_of() {
    let Some(kvm) = kvm() else { return };
    let image = counter();
    let mut machine = boot(&kvm, &image, Vec::new());
    to_wait(&mut machine, None);
    for _ in 0..4 {
        to_wait(&mut machine, Some(1));
    }
    let saved = machine.save(Some(Answer::ok(77))).unwrap();
    let frozen = Frozen::new(&saved, &image);
    let snapshot = frozen.open(&kvm);
    assert_eq!(
        (snapshot.generation(), snapshot.boot().memory),
        (1, 4 << 20)
    );

    to_wait(&mut machine, Some(1));
    assert_eq!((word(&machine, DATA), word(&machine, DATA + 16)), (5, 1));

    for generation in [2, 3] {
        let mut clone = clone(&kvm, &snapshot, generation);
        assert_eq!(word(&clone, DATA), 4);
        to_wait(&mut clone, None);
        assert_eq!(word(&clone, DATA), 5);
        // What its call returned, and what only the FPU knew.
        assert_eq!((word(&clone, DATA + 8), word(&clone, DATA + 16)), (0, 77));
        assert_eq!(word(&clone, DATA + 24), 0x1122_3344_5566_7788);
        assert_eq!(word(&clone, DATA + 32) as u32, 0x7F80);
        assert_eq!(clone.vcpu.registers().r15, 6);
        assert_eq!(clone.layout().stack, machine.layout().stack);
        for _ in 0..generation {
            to_wait(&mut clone, Some(1));
        }
        assert_eq!(word(&clone, DATA), 5 + generation);
    }
}

#[test]
fn a_clone_is_told_that_it_is_another() {
    let Some(kvm) = kvm() else { return };
    let image = counter();
    let mut machine = boot(&kvm, &image, Vec::new());
    to_wait(&mut machine, None);
    let before = machine.monotonic_ns();
    let saved = machine.save(Some(Answer::ok(0))).unwrap();
    let frozen = Frozen::new(&saved, &image);
    let snapshot = frozen.open(&kvm);
    let pause = std::time::Duration::from_millis(300);
    std::thread::sleep(pause);
    let first = boot_page(&machine);
    let [a, b] = [2, 3].map(|generation| clone(&kvm, &snapshot, generation));
    let pages = [boot_page(&a), boot_page(&b)];
    assert_eq!(pages.each_ref().map(|page| page.generation), [2, 3]);
    assert!(pages[0].seed != pages[1].seed && pages[0].seed != first.seed);
    for (page, clone) in pages.iter().zip([&a, &b]) {
        let same = BootPage {
            generation: first.generation,
            seed: first.seed,
            clock: first.clock,
            ..page.clone()
        };
        assert_eq!(same, first);
        let args = UserSlice {
            addr: page.args.addr,
            len: page.args.len,
        };
        assert_eq!(clone.read_user(args).unwrap(), b"one\0two\0");
        // Its own time goes on from there; that of the world is the world's.
        let shows = clone.monotonic_ns();
        assert!(shows >= before, "{shows}");
        assert!(machine.monotonic_ns() - shows >= pause.as_nanos() as u64 / 2);
        let now = crate::time::tsc();
        let walls = [page.clock.wall_ns(now), first.clock.wall_ns(now)];
        assert!(walls[0].abs_diff(walls[1]) < 1_000_000_000, "{walls:?}");
    }
}

#[test]
fn clones_share_what_they_do_not_write() {
    const LEN: u64 = 16 << 20;
    let Some(kvm) = kvm() else { return };
    // Fills 16 MiB of its heap, then reads them all before each wait.
    let image = image(Manifest::new("filler", "1"), &[], |a| {
        use iced_x86::code_asm::{rbx, rsi};
        let mut again = a.create_label();
        let mut read = a.create_label();
        a.mov(rbx, qword_ptr(rdi + 112))?;
        a.mov(rdi, rbx)?;
        a.mov(rax, 0x0101_0101_0101_0101_u64)?;
        a.mov(rcx, LEN / 8)?;
        a.rep().stosq()?;
        a.set_label(&mut again)?;
        a.mov(rsi, rbx)?;
        a.mov(rcx, LEN / PAGE)?;
        a.xor(rax, rax)?;
        a.set_label(&mut read)?;
        a.add(rax, qword_ptr(rsi))?;
        a.add(rsi, PAGE as i32)?;
        a.dec(rcx)?;
        a.jnz(read)?;
        a.mov(rdi, DATA)?;
        a.mov(qword_ptr(rdi), rax)?;
        wait(a)?;
        a.jmp(again)
    });
    let mut machine = Machine::boot(&kvm, &image, &BootConfig::default(), Vec::new()).unwrap();
    to_wait(&mut machine, None);
    let sum = word(&machine, DATA);
    let began = Instant::now();
    let saved = machine.save(Some(Answer::ok(0))).unwrap();
    eprintln!(
        "saved {} KiB in {:?}",
        saved.resident() >> 10,
        began.elapsed()
    );
    assert!(saved.resident() >= LEN);
    drop(machine);
    let frozen = Frozen::new(&saved, &image);
    let snapshot = frozen.open(&kvm);
    let clones: Vec<_> = (2..6)
        .map(|generation| {
            let mut clone = clone(&kvm, &snapshot, generation);
            to_wait(&mut clone, None);
            assert_eq!(word(&clone, DATA), sum);
            clone
        })
        .collect();
    let [resident, share] = ["Rss:", "Pss:"].map(|key| kib_of(&frozen.path, key) << 10);
    eprintln!(
        "4 clones: {} KiB resident, {} KiB of memory",
        resident >> 10,
        share >> 10
    );
    assert!(resident >= 4 * LEN, "{resident}");
    assert!(share < LEN + LEN / 4, "{share}");
    drop(clones);
    assert_eq!(kib_of(&frozen.path, "Rss:"), 0);
}

/// What /proc/self/smaps says of all mappings of a file together.
fn kib_of(path: &std::path::Path, key: &str) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut is_ours, mut sum) = (false, 0);
    for line in smaps.lines() {
        if line.split(' ').next().is_some_and(|it| it.contains('-')) {
            is_ours = line.ends_with(path.to_str().unwrap());
        } else if is_ours && line.starts_with(key) {
            let number = line.split_whitespace().nth(1).unwrap();
            sum += number.parse::<u64>().unwrap();
        }
    }
    sum
}

#[test]
fn a_ring_goes_on_around_and_around() {
    let Some(kvm) = kvm() else { return };
    let image = disk_driver();
    let (_, backends) = disk(0);
    let mut machine = boot(&kvm, &image, backends);
    to_served_wait(&mut machine, None);
    for _ in 1..13 {
        to_served_wait(&mut machine, Some(0));
    }
    // Put into the ring and not looked at.
    to_wait(&mut machine, Some(0));
    let saved = machine.save(Some(Answer::ok(0))).unwrap();
    let frozen = Frozen::new(&saved, &image);
    let snapshot = frozen.open(&kvm);
    let (disk, backends) = disk(100);
    let mut clone = Machine::restore(&kvm, &snapshot, SECOND, backends).unwrap();
    let used = |machine: &Machine| word(machine, USED) >> 16 & 0xFFFF;
    assert_eq!(used(&clone), 13);
    clone.serve().unwrap();
    assert_eq!((used(&clone), word(&clone, BUFFER)), (14, 101));
    for turn in 0..30 {
        to_served_wait(&mut clone, (turn > 0).then_some(0));
        assert_eq!(
            (used(&clone), word(&clone, BUFFER)),
            (15 + turn, 102 + turn)
        );
    }
    assert_eq!(*disk.0.lock().unwrap(), 131);
    assert_eq!(word(&clone, COUNT), 43);
}

#[test]
fn a_driver_that_has_hidden_its_set_up_is_not_saved() {
    let Some(kvm) = kvm() else { return };
    let image = disk_driver();
    let mut machine = boot(&kvm, &image, disk(0).1);
    to_served_wait(&mut machine, None);
    let page = machine.layout().devices.unwrap().gpa;
    machine
        .vm
        .memory()
        .write(page.offset(256), &[0; 4])
        .unwrap();
    let refused = machine.save(Some(Answer::ok(0))).unwrap_err();
    assert!(
        matches!(refused, SaveError::SetUp { device: 0 }),
        "{refused}"
    );
    // It goes on all the same.
    to_served_wait(&mut machine, Some(0));
}

#[derive(Debug)]
struct Typed(&'static [u8], std::fs::File);

impl Input for Typed {
    fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.1)
    }
    fn read(&mut self, into: &Buffers<'_>) -> io::Result<usize> {
        let text = std::mem::take(&mut self.0);
        if text.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(into.copy_in(text))
    }
}

fn console(text: Option<&'static [u8]>) -> Vec<Backend> {
    let input = text.map(|text| {
        let input = Typed(text, std::fs::File::open("/dev/null").unwrap());
        Box::new(input) as Box<dyn Input>
    });
    vec![Backend::Console(Box::new(Console::new(input)))]
}

#[test]
fn a_buffer_that_waited_for_input_waits_in_the_clone_and_the_end_stays_the_end() {
    let Some(kvm) = kvm() else { return };
    let image = driver(
        Manifest::new("driver", "1").with_device(DeviceKind::Console, "input"),
        false,
    );
    for (text, then, expected) in [
        (Some(b"".as_slice()), Some(b"typed".as_slice()), b"typed"),
        (None, Some(b"typed"), b"\0\0\0\0\0"),
    ] {
        let mut machine = boot(&kvm, &image, console(text));
        to_served_wait(&mut machine, None);
        let saved = machine.save(Some(Answer::ok(0))).unwrap();
        let frozen = Frozen::new(&saved, &image);
        let snapshot = frozen.open(&kvm);
        let mut clone = Machine::restore(&kvm, &snapshot, SECOND, console(then)).unwrap();
        clone.serve().unwrap();
        to_served_wait(&mut clone, None);
        let slice = UserSlice {
            addr: BUFFER,
            len: 5,
        };
        assert_eq!(clone.read_user(slice).unwrap(), expected);
    }
}

#[test]
fn only_who_can_go_on_is_saved() {
    let Some(kvm) = kvm() else { return };
    let image = counter();
    let mut machine = boot(&kvm, &image, Vec::new());
    let answer = Some(Answer::ok(0));
    assert!(matches!(machine.save(answer), Err(SaveError::Answer)));
    // One that has not begun begins in the clone.
    let saved = machine.save(None).unwrap();
    let frozen = Frozen::new(&saved, &image);
    let mut clone = clone(&kvm, &frozen.open(&kvm), 2);
    to_wait(&mut clone, None);
    assert_eq!(clone.vcpu.registers().r15, 1);
    assert!(matches!(clone.save(None), Err(SaveError::Answer)));

    // hlt, which CPL 3 may not.
    let broken = crate::testing::image(Manifest::new("broken", "1"), &[], CodeAssembler::hlt);
    let mut machine = boot(&kvm, &broken, Vec::new());
    assert!(matches!(machine.enter(None).unwrap(), Exit::Fault(_)));
    assert!(matches!(machine.save(None), Err(SaveError::Over)));
}

/// A forged file is one with every checksum right.
#[test]
fn no_table_of_a_forged_file_is_believed() {
    let Some(kvm) = kvm() else { return };
    let image = counter();
    let mut machine = boot(&kvm, &image, Vec::new());
    to_wait(&mut machine, None);
    let mut saved = machine.save(Some(Answer::ok(0))).unwrap();
    let layout = machine.layout();
    let (tables, system) = (layout.tables_range.clone(), layout.system);
    let boot = layout.boot.gpa;
    let mut spoilt = 0;
    for (number, page) in saved.numbers.iter().zip(saved.pages.chunks_exact_mut(4096)) {
        let at = number * PAGE;
        if tables.contains(&at) || at == system.gpa.0 || at == boot.0 {
            page.fill(0xFF);
            spoilt += 1;
        }
    }
    assert!(spoilt >= 5, "{spoilt}");
    let frozen = Frozen::new(&saved, &image);
    let snapshot = frozen.open(&kvm);
    let mut clone = clone(&kvm, &snapshot, 2);
    to_wait(&mut clone, None);
    assert_eq!(word(&clone, DATA), 1);
    assert_eq!(boot_page(&clone).generation, 2);
}

#[test]
fn forged_registers_fault_their_own_guest() {
    let Some(kvm) = kvm() else { return };
    let image = counter();
    let mut machine = boot(&kvm, &image, Vec::new());
    to_wait(&mut machine, None);
    let saved = machine.save(Some(Answer::ok(0))).unwrap();
    let system = machine.layout().system.addr;
    for rip in [0, system + 0x400, DATA, (1 << 47) - 1] {
        let mut registers = machine.vcpu.registers();
        registers.rip = rip;
        registers.rsp = 1 << 63;
        registers.rflags = u64::MAX;
        let mut forged = super::Saved {
            state: saved.state.clone(),
            numbers: saved.numbers.clone(),
            pages: saved.pages.clone(),
            ..saved
        };
        forged.state.registers = super::Registers::new(&registers);
        let frozen = Frozen::new(&forged, &image);
        let mut clone = clone(&kvm, &frozen.open(&kvm), 2);
        let exit = clone.enter(None).unwrap();
        let Exit::Fault(fault) = exit else {
            panic!("{rip:#x}: {exit:?}");
        };
        assert!(matches!(fault.cause, Cause::Exception(_)), "{fault:?}");
    }
}

#[test]
fn forged_devices_are_refused_or_fault_their_own_guest() {
    let Some(kvm) = kvm() else { return };
    let image = disk_driver();
    let mut machine = boot(&kvm, &image, disk(0).1);
    to_served_wait(&mut machine, None);
    let mut saved = machine.save(Some(Answer::ok(0))).unwrap();
    // Far from where the ring is.
    saved.state.devices[0].queues.as_mut().unwrap()[0] = Some(30_000);
    let frozen = Frozen::new(&saved, &image);
    let snapshot = frozen.open(&kvm);
    let mut clone = Machine::restore(&kvm, &snapshot, SECOND, disk(0).1).unwrap();
    let fault = clone.serve().unwrap_err();
    assert!(matches!(fault.cause, Cause::Device(_)), "{fault:?}");
    // A queue that the page does not speak of, and one that it speaks of missing.
    for queues in [
        [Some(1), Some(1), None, None, None, None, None, None],
        [None; 8],
    ] {
        saved.state.devices[0].queues = Some(queues);
        let frozen = Frozen::new(&saved, &image);
        let snapshot = frozen.open(&kvm);
        let refused = Machine::restore(&kvm, &snapshot, SECOND, disk(0).1).unwrap_err();
        assert!(
            matches!(refused, RestoreError::Device { device: 0, .. }),
            "{refused}"
        );
    }
    let snapshot = Frozen::new(&machine.save(Some(Answer::ok(0))).unwrap(), &image).open(&kvm);
    let refused = Machine::restore(&kvm, &snapshot, SECOND, Vec::new()).unwrap_err();
    assert!(matches!(refused, RestoreError::Host(_)), "{refused}");
}

#[test]
fn a_clock_goes_on_where_the_machine_has_not_been_up_for_so_long() {
    let Some(kvm) = kvm() else { return };
    let image = counter();
    let mut machine = boot(&kvm, &image, Vec::new());
    to_wait(&mut machine, None);
    let mut saved = machine.save(Some(Answer::ok(0))).unwrap();
    const CENTURY: u64 = 100 * 366 * 86_400 * 1_000_000_000;
    for was in [CENTURY / 4, CENTURY * 5] {
        saved.state.monotonic_ns = was;
        let snapshot = Frozen::new(&saved, &image).open(&kvm);
        let clone = Machine::restore(&kvm, &snapshot, SECOND, Vec::new());
        if was > CENTURY {
            let refused = clone.unwrap_err();
            assert!(matches!(refused, RestoreError::Clock), "{refused}");
        } else {
            let mut clone = clone.unwrap();
            let shows = clone.monotonic_ns();
            assert!((was..was + 60_000_000_000).contains(&shows), "{shows}");
            to_wait(&mut clone, None);
            assert!(clone.monotonic_ns() > shows);
        }
    }
}

/// Not asserted: a shared machine moves either by more than they differ.
#[test]
fn how_long_a_clone_takes_beside_a_bare_start() {
    let Some(kvm) = kvm() else { return };
    let image = counter();
    let mut machine = boot(&kvm, &image, Vec::new());
    to_wait(&mut machine, None);
    let began = Instant::now();
    let saved = machine.save(Some(Answer::ok(0))).unwrap();
    let paused = began.elapsed();
    let snapshot = Frozen::new(&saved, &image).open(&kvm);
    let [mut bare, mut cloned] = [Vec::new(), Vec::new()];
    for _ in 0..20 {
        let began = Instant::now();
        let mut machine = boot(&kvm, &image, Vec::new());
        let _ = matches!(machine.enter(None).unwrap(), Exit::Call(Call::Wait { .. }));
        bare.push(began.elapsed());
        drop(machine);
        let began = Instant::now();
        let mut clone = Machine::restore(&kvm, &snapshot, SECOND, Vec::new()).unwrap();
        clone.enter(None).unwrap();
        cloned.push(began.elapsed());
    }
    let [bare, cloned] = [bare, cloned].map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    });
    let ratio = cloned.as_secs_f64() / bare.as_secs_f64();
    eprintln!("saved in {paused:?}; boot and run {bare:?}, restore and run {cloned:?}: {ratio:.2}");
    assert!(ratio < 10.0, "{ratio}");
}
