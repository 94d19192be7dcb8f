//! Rings that lie. A guest of a few instructions sets up its disk with what a test
//! wrote into its memory, has the host look, and must find itself faulted or
//! answered: never the host harmed, nor a byte outside its own memory touched.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, dword_ptr, ecx, qword_ptr, rax, rdi, rsi};
use wharf_abi::device::{
    DeviceSetup, FEATURE_EVENT_IDX, FEATURE_VERSION_1, QUEUES_MAX, QueueSetup, STATUS_DRIVER_OK,
};
use wharf_abi::hypercall::kick_target;
use wharf_abi::{DeviceKind, Hypercall, Interest, Manifest, Status};
use wharf_machine::device::{Backend, Broken, DeviceFault, REQUEST_MAX};
use wharf_machine::fault::Cause;
use wharf_machine::image::Image;
use wharf_machine::{BootConfig, Hypervisor, Machine, UserSlice};
use wharf_tests::disk::TestDisk;
use wharf_tests::elf::{CODE_ADDR, ElfBuilder};
use wharf_tests::guest::{End, Run, assemble, call, exit, kvm, run_machine};
use zerocopy::IntoBytes;

/// Everything that the guest's rings are made of, in one writable segment.
const DESCRIPTORS: u64 = 0x50_0000;
const AVAILABLE: u64 = 0x50_1000;
const USED: u64 = 0x50_2000;
const HEADER: u64 = 0x50_3000;
const DATA: u64 = 0x50_4000;
const STATUS: u64 = 0x50_6000;
const SETUP: u64 = 0x50_7000;
/// What hypercalls answered.
const SAID: u64 = 0x50_8000;
const END: u64 = 0x50_9000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const SIZE: u16 = 8;
const DISK_LEN: usize = 64 * 512;

/// A descriptor: address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

/// The guest's memory before it starts. As it comes, it is a good request: read
/// sector 1 into `DATA`.
struct Rings {
    setup: DeviceSetup,
    descriptors: Vec<Descriptor>,
    /// Index, then heads.
    available: (u16, Vec<u16>),
    /// Type and sector.
    header: (u32, u64),
}

impl Rings {
    fn good() -> Self {
        let mut queues = [QueueSetup::default(); QUEUES_MAX];
        queues[0] = QueueSetup {
            size: SIZE.into(),
            enabled: 1,
            descriptors: DESCRIPTORS,
            driver_area: AVAILABLE,
            device_area: USED,
        };
        Self {
            setup: DeviceSetup {
                status: STATUS_DRIVER_OK | 0b1011,
                reserved: 0,
                features: FEATURE_VERSION_1 | FEATURE_EVENT_IDX | FLUSH,
                queues,
            },
            descriptors: vec![
                (HEADER, 16, NEXT, 1),
                (DATA, 512, NEXT | WRITE, 2),
                (STATUS, 1, WRITE, 0),
            ],
            available: (1, vec![0]),
            header: (0, 1),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut memory = vec![0_u8; (END - DESCRIPTORS) as usize];
        let mut put = |at: u64, bytes: &[u8]| {
            let at = (at - DESCRIPTORS) as usize;
            memory[at..at + bytes.len()].copy_from_slice(bytes);
        };
        for (at, &(addr, len, flags, next)) in (DESCRIPTORS..).step_by(16).zip(&self.descriptors) {
            put(at, &addr.to_le_bytes());
            put(at + 8, &len.to_le_bytes());
            put(at + 12, &flags.to_le_bytes());
            put(at + 14, &next.to_le_bytes());
        }
        let (index, heads) = &self.available;
        put(AVAILABLE + 2, &index.to_le_bytes());
        for (at, head) in (AVAILABLE + 4..).step_by(2).zip(heads) {
            put(at, &head.to_le_bytes());
        }
        put(HEADER, &self.header.0.to_le_bytes());
        put(HEADER + 8, &self.header.1.to_le_bytes());
        put(DATA, &[0xDA; 0x2000]);
        put(STATUS, &[0xFF]);
        put(SETUP, self.setup.as_bytes());
        memory
    }
}

const FLUSH: u64 = 1 << 9;

/// Copies the set-up into the page of the first device, whose boot page is in RDI.
fn set_up(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, qword_ptr(rdi + 152))?;
    a.mov(rdi, qword_ptr(rax + 40))?;
    a.add(rdi, 256)?;
    a.mov(rsi, SETUP)?;
    a.mov(ecx, 272)?;
    a.rep().movsb()
}

/// Makes a call, and notes what it answered in RAX and RDX.
fn note(
    a: &mut CodeAssembler,
    which: u64,
    hypercall: Hypercall,
    first: u64,
    second: u64,
) -> Result<(), IcedError> {
    call(a, hypercall, first, second)?;
    a.mov(rdi, SAID + 16 * which)?;
    a.mov(qword_ptr(rdi), rax)?;
    a.mov(qword_ptr(rdi + 8), iced_x86::code_asm::rdx)
}

fn start(
    kvm: &Hypervisor,
    rings: &Rings,
    disk: &TestDisk,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Run {
    let manifest = Manifest::new("hostile", "1").with_device(DeviceKind::Block, "data");
    let elf = ElfBuilder::guest(&assemble(code))
        .data(DESCRIPTORS, &rings.bytes())
        .manifest(manifest)
        .build();
    let image = Image::parse(elf).unwrap();
    let backends = vec![Backend::Block(Box::new(disk.clone()))];
    let machine = Machine::boot(kvm, &image, &BootConfig::default(), backends).unwrap();
    run_machine(machine)
}

/// Has the host look at the rings by a wait, then exits.
fn look(kvm: &Hypervisor, rings: &Rings, disk: &TestDisk) -> Run {
    start(kvm, rings, disk, |a| {
        set_up(a)?;
        note(a, 0, Hypercall::Wait, 0, Interest::device(0).bits())?;
        exit(a, 0)
    })
}

fn memory(run: &Run, addr: u64, len: u64) -> Vec<u8> {
    run.machine.read_user(UserSlice { addr, len }).unwrap()
}

fn word(run: &Run, addr: u64) -> u64 {
    u64::from_le_bytes(memory(run, addr, 8).try_into().unwrap())
}

fn used_index(run: &Run) -> u16 {
    u16::from_le_bytes(memory(run, USED + 2, 2).try_into().unwrap())
}

fn faulted(queue: u16, broken: Broken) -> End {
    End::Fault(Cause::Device(DeviceFault {
        device: 0,
        queue,
        broken,
    }))
}

/// The test of the tests: what is called an attack below works when it is none.
#[test]
fn a_good_request_is_served_at_a_wait() {
    let Some(kvm) = kvm() else { return };
    let disk = TestDisk::new(DISK_LEN, 0x5A);
    let run = look(&kvm, &Rings::good(), &disk);
    assert_eq!(run.end, End::Exited(0));
    assert_eq!(memory(&run, STATUS, 1), [0]);
    assert_eq!(memory(&run, DATA, 512), [0x5A; 512]);
    assert_eq!(memory(&run, DATA + 512, 512), [0xDA; 512]);
    assert_eq!(used_index(&run), 1);
    // The disk's bit, and the timer's that these tests always answer with.
    assert_eq!(word(&run, SAID + 8), Interest::device(0).bits() | 1);
    assert_eq!(disk.served(), 1);
}

type Edit = fn(&mut Rings);

#[test]
fn a_set_up_that_makes_no_sense_faults() {
    let Some(kvm) = kvm() else { return };
    let size = |size| Broken::QueueSize { size };
    let ring = |addr| Broken::Ring { addr };
    let features = |accepted| Broken::Features { accepted };
    let both = FEATURE_VERSION_1 | FEATURE_EVENT_IDX;
    let cases: [(&str, Edit, u16, Broken); 23] = [
        ("no feature", |r| r.setup.features = 0, 0, features(0)),
        (
            "no indices",
            |r| r.setup.features = FEATURE_VERSION_1,
            0,
            features(FEATURE_VERSION_1),
        ),
        (
            "every feature",
            |r| r.setup.features = u64::MAX,
            0,
            features(u64::MAX),
        ),
        (
            "one not offered",
            |r| r.setup.features |= 1 << 28,
            0,
            features(both | FLUSH | 1 << 28),
        ),
        ("size 0", |r| r.setup.queues[0].size = 0, 0, size(0)),
        ("size 3", |r| r.setup.queues[0].size = 3, 0, size(3)),
        ("size 512", |r| r.setup.queues[0].size = 512, 0, size(512)),
        (
            "size 2^15",
            |r| r.setup.queues[0].size = 1 << 15,
            0,
            size(1 << 15),
        ),
        (
            "size 2^16",
            |r| r.setup.queues[0].size = 1 << 16,
            0,
            size(1 << 16),
        ),
        (
            "size 2^16 + 8",
            |r| r.setup.queues[0].size = 0x1_0008,
            0,
            size(0x1_0008),
        ),
        (
            "absurd size",
            |r| r.setup.queues[0].size = u32::MAX,
            0,
            size(u32::MAX),
        ),
        (
            "queue 1",
            |r| r.setup.queues[1] = r.setup.queues[0],
            1,
            Broken::NoSuchQueue,
        ),
        (
            "queue 7",
            |r| r.setup.queues[7].enabled = 1,
            7,
            Broken::NoSuchQueue,
        ),
        (
            "null rings",
            |r| r.setup.queues[0].descriptors = 0,
            0,
            ring(0),
        ),
        (
            "crooked descriptors",
            |r| r.setup.queues[0].descriptors += 8,
            0,
            ring(DESCRIPTORS + 8),
        ),
        (
            "crooked available",
            |r| r.setup.queues[0].driver_area += 1,
            0,
            ring(AVAILABLE + 1),
        ),
        (
            "crooked used",
            |r| r.setup.queues[0].device_area += 2,
            0,
            ring(USED + 2),
        ),
        (
            "rings in code",
            |r| r.setup.queues[0].device_area = CODE_ADDR,
            0,
            ring(CODE_ADDR),
        ),
        (
            "no memory",
            |r| r.setup.queues[0].driver_area = 1 << 40,
            0,
            ring(1 << 40),
        ),
        (
            "non-canonical",
            |r| r.setup.queues[0].driver_area = 1 << 63,
            0,
            ring(1 << 63),
        ),
        (
            "end of numbers",
            |r| r.setup.queues[0].device_area = u64::MAX - 3,
            0,
            ring(u64::MAX - 3),
        ),
        (
            "across the end",
            |r| r.setup.queues[0].device_area = END - 8,
            0,
            ring(END - 8),
        ),
        (
            "before the start",
            |r| r.setup.queues[0].descriptors = DESCRIPTORS - 16,
            0,
            ring(DESCRIPTORS - 16),
        ),
    ];
    for (name, edit, queue, broken) in cases {
        let disk = TestDisk::new(DISK_LEN, 1);
        let mut rings = Rings::good();
        edit(&mut rings);
        let run = look(&kvm, &rings, &disk);
        assert_eq!(run.end, faulted(queue, broken), "{name}");
        assert_eq!(disk.served(), 0, "{name}");
    }
}

/// The host's own pages: none of them can hold a ring or be a buffer.
#[test]
fn rings_and_buffers_in_the_hosts_pages_fault() {
    let Some(kvm) = kvm() else { return };
    let disk = TestDisk::new(DISK_LEN, 1);
    let probe = look(&kvm, &Rings::good(), &disk);
    // A fixed image lies the same way every time.
    let layout = probe.machine.layout();
    let (boot, system) = (layout.boot.addr, layout.system.addr);
    let fault_stack = layout.fault_stack.addr;
    for (name, addr) in [
        ("boot page", boot),
        ("arguments", boot + layout.boot.len - 1024),
        ("system page", system),
        ("fault stack", fault_stack),
        ("code", CODE_ADDR),
        ("a page table's physical address", layout.tables_range.start),
    ] {
        let mut rings = Rings::good();
        rings.setup.queues[0].device_area = addr;
        let run = look(&kvm, &rings, &disk);
        assert_eq!(run.end, faulted(0, Broken::Ring { addr }), "{name}");

        let mut rings = Rings::good();
        rings.descriptors[1].0 = addr;
        let run = look(&kvm, &rings, &disk);
        let broken = Broken::Buffer { addr, len: 512 };
        assert_eq!(run.end, faulted(0, broken), "{name}");
    }
    // What the guest may read it may also write to its disk.
    for (name, addr, may) in [
        ("boot page", boot, true),
        ("code", CODE_ADDR, true),
        ("system page", system, false),
        ("fault stack", fault_stack, false),
    ] {
        let mut rings = Rings::good();
        rings.header.0 = 1;
        rings.descriptors[1] = (addr, 512, NEXT, 2);
        let run = look(&kvm, &rings, &disk);
        let end = if may {
            End::Exited(0)
        } else {
            faulted(0, Broken::Buffer { addr, len: 512 })
        };
        assert_eq!(run.end, end, "{name}");
    }
}

#[test]
fn a_ring_that_makes_no_sense_faults() {
    let Some(kvm) = kvm() else { return };
    let buffer = |addr, len| Broken::Buffer { addr, len };
    let cases: [(&str, Edit, Broken); 22] = [
        ("index far ahead", |r| r.available.0 = 9, Broken::AvailIndex),
        (
            "index at the end",
            |r| r.available.0 = u16::MAX,
            Broken::AvailIndex,
        ),
        (
            "head out of range",
            |r| r.available.1 = vec![SIZE],
            Broken::Chain,
        ),
        (
            "head at the end",
            |r| r.available.1 = vec![u16::MAX],
            Broken::Chain,
        ),
        (
            "next out of range",
            |r| r.descriptors[1].3 = SIZE,
            Broken::Chain,
        ),
        (
            "next at the end",
            |r| r.descriptors[1].3 = u16::MAX,
            Broken::Chain,
        ),
        (
            "loop of one",
            |r| r.descriptors[0] = (HEADER, 16, NEXT, 0),
            Broken::Chain,
        ),
        (
            "loop of two",
            |r| r.descriptors[1] = (HEADER, 16, NEXT, 0),
            Broken::Chain,
        ),
        (
            "loop of the last",
            |r| r.descriptors[2] = (STATUS, 1, WRITE | NEXT, 2),
            Broken::Chain,
        ),
        (
            "4 GiB in all",
            |r| r.descriptors[1].1 = u32::MAX,
            Broken::Chain,
        ),
        (
            "read behind write",
            |r| r.descriptors[2] = (STATUS, 1, 0, 0),
            Broken::Order,
        ),
        (
            "no room for a status",
            |r| r.descriptors = vec![(HEADER, 16, 0, 0)],
            Broken::NoStatus,
        ),
        (
            "status of no length",
            |r| {
                r.descriptors = vec![(HEADER, 16, NEXT, 1), (STATUS, 0, WRITE, 0)];
            },
            Broken::NoStatus,
        ),
        (
            "no header",
            |r| r.descriptors = vec![(STATUS, 1, WRITE, 0)],
            Broken::NoHeader,
        ),
        (
            "half a header",
            |r| r.descriptors[0].1 = 15,
            Broken::NoHeader,
        ),
        ("header nowhere", |r| r.descriptors[0].0 = 0, buffer(0, 16)),
        ("data nowhere", |r| r.descriptors[1].0 = 0, buffer(0, 512)),
        (
            "data at the end of numbers",
            |r| r.descriptors[1].0 = u64::MAX - 3,
            buffer(u64::MAX - 3, 512),
        ),
        (
            "data across the end",
            |r| r.descriptors[1].0 = END - 4,
            buffer(END - 4, 512),
        ),
        (
            "status nowhere",
            |r| r.descriptors[2].0 = 1 << 47,
            buffer(1 << 47, 1),
        ),
        (
            "indirect table nowhere",
            |r| r.descriptors = vec![(0, 32, INDIRECT, 0)],
            Broken::Chain,
        ),
        (
            "indirect table in itself",
            |r| {
                r.descriptors = vec![(DESCRIPTORS, 16, INDIRECT, 0)];
            },
            Broken::Chain,
        ),
    ];
    for (name, edit, broken) in cases {
        let disk = TestDisk::new(DISK_LEN, 1);
        let mut rings = Rings::good();
        edit(&mut rings);
        let run = look(&kvm, &rings, &disk);
        assert_eq!(run.end, faulted(0, broken), "{name}");
        assert_eq!(disk.served(), 0, "{name}");
    }
}

#[test]
fn a_request_that_cannot_be_done_is_answered_with_an_error() {
    let Some(kvm) = kvm() else { return };
    const IO: u8 = 1;
    const UNSUPPORTED: u8 = 2;
    let cases: [(&str, Edit, u8); 12] = [
        ("behind the end", |r| r.header.1 = 64, IO),
        (
            "across the end",
            |r| {
                r.header.1 = 63;
                r.descriptors[1].1 = 1024;
            },
            IO,
        ),
        (
            "sector at the end of numbers",
            |r| r.header.1 = u64::MAX,
            IO,
        ),
        ("sector that overflows", |r| r.header.1 = 1 << 55, IO),
        ("half a sector", |r| r.descriptors[1].1 = 256, IO),
        ("a sector and a byte", |r| r.descriptors[1].1 = 513, IO),
        ("unknown type", |r| r.header.0 = 99, UNSUPPORTED),
        (
            "type at the end of numbers",
            |r| r.header.0 = u32::MAX,
            UNSUPPORTED,
        ),
        (
            "discard that was not accepted",
            |r| r.header.0 = 11,
            UNSUPPORTED,
        ),
        (
            "discard without a segment",
            |r| {
                r.header.0 = 11;
                r.setup.features |= 1 << 13;
            },
            IO,
        ),
        (
            "write behind the end",
            |r| {
                r.header = (1, 64);
                r.descriptors[1] = (DATA, 512, NEXT, 2);
            },
            IO,
        ),
        (
            "write that has a crooked end",
            |r| {
                r.header = (1, 0);
                r.descriptors[1] = (DATA, 100, NEXT, 2);
            },
            IO,
        ),
    ];
    for (name, edit, status) in cases {
        let disk = TestDisk::new(DISK_LEN, 0x11);
        let mut rings = Rings::good();
        edit(&mut rings);
        let run = look(&kvm, &rings, &disk);
        assert_eq!(run.end, End::Exited(0), "{name}");
        assert_eq!(used_index(&run), 1, "{name}");
        assert_eq!(memory(&run, STATUS, 1), [status], "{name}");
        assert_eq!(disk.bytes(), [0x11; DISK_LEN], "{name}");
        assert_eq!(disk.served(), 0, "{name}");
    }
}

#[test]
fn what_the_disk_cannot_do_is_an_error_to_the_guest_only() {
    let Some(kvm) = kvm() else { return };
    for (name, disk) in [
        ("no space", TestDisk::new(DISK_LEN, 7).failing(28)),
        ("broken", TestDisk::new(DISK_LEN, 7).failing(5)),
        ("read-only", TestDisk::new(DISK_LEN, 7).read_only()),
    ] {
        let mut rings = Rings::good();
        rings.header.0 = 1;
        rings.descriptors[1] = (DATA, 512, NEXT, 2);
        let run = look(&kvm, &rings, &disk);
        assert_eq!(run.end, End::Exited(0), "{name}");
        assert_eq!(memory(&run, STATUS, 1), [1], "{name}");
        assert_eq!(disk.bytes(), [7; DISK_LEN], "{name}");
    }
}

/// The host writes what it reads from the disk over the very rings that told it to:
/// it has fetched what it needs by then.
#[test]
fn a_buffer_that_lies_over_the_rings_harms_its_owner_only() {
    let Some(kvm) = kvm() else { return };
    for target in [DESCRIPTORS, AVAILABLE, USED, HEADER, SETUP] {
        let disk = TestDisk::new(DISK_LEN, 0xEE);
        let mut rings = Rings::good();
        rings.descriptors[1].0 = target;
        let run = start(&kvm, &rings, &disk, |a| {
            set_up(a)?;
            call(a, Hypercall::Wait, 0, 0)?;
            // What is in the rings now is nonsense, or not.
            call(a, Hypercall::Wait, 0, 0)?;
            call(a, Hypercall::Kick, 0, 0)?;
            exit(a, 0)
        });
        let nonsense = matches!(run.end, End::Fault(Cause::Device(_)));
        assert!(nonsense || run.end == End::Exited(0), "{target:#x}");
        assert_eq!(disk.served(), 1, "{target:#x}");
    }
}

/// What is written into the page after the host has looked means nothing to it.
#[test]
fn a_set_up_that_changes_after_it_was_checked_changes_nothing() {
    let Some(kvm) = kvm() else { return };
    let disk = TestDisk::new(DISK_LEN, 0x42);
    let run = start(&kvm, &Rings::good(), &disk, |a| {
        a.mov(iced_x86::code_asm::rbx, rdi)?;
        set_up(a)?;
        note(a, 0, Hypercall::Kick, kick_target(0, 0), 0)?;
        // Rings at address 8 from now on, says the page.
        a.mov(rax, qword_ptr(iced_x86::code_asm::rbx + 152))?;
        a.mov(rdi, qword_ptr(rax + 40))?;
        for at in [256 + 16, 256 + 24, 256 + 32, 256 + 40] {
            a.mov(qword_ptr(rdi + at), 8)?;
        }
        // The same request once more.
        a.mov(rdi, AVAILABLE)?;
        a.mov(dword_ptr(rdi), 2 << 16)?;
        note(a, 1, Hypercall::Kick, kick_target(0, 0), 0)?;
        exit(a, 0)
    });
    assert_eq!(run.end, End::Exited(0));
    assert_eq!(disk.served(), 2);
    assert_eq!(used_index(&run), 2);
    assert_eq!([word(&run, SAID), word(&run, SAID + 16)], [0, 0]);
}

#[test]
fn a_kick_of_what_is_not_there_is_refused() {
    let Some(kvm) = kvm() else { return };
    for target in [
        kick_target(0, 1),
        kick_target(0, 7),
        kick_target(0, 8),
        kick_target(0, u16::MAX),
        kick_target(1, 0),
        kick_target(u16::MAX, u16::MAX),
        1 << 32,
        1 << 63,
        u64::MAX,
    ] {
        let disk = TestDisk::new(DISK_LEN, 1);
        let run = start(&kvm, &Rings::good(), &disk, |a| {
            set_up(a)?;
            note(a, 0, Hypercall::Kick, target, 0)?;
            exit(a, 0)
        });
        assert_eq!(run.end, End::Exited(0), "{target:#x}");
        assert_eq!(word(&run, SAID), Status::Invalid.raw(), "{target:#x}");
        assert_eq!(disk.served(), 0, "{target:#x}");
    }
}

#[test]
fn a_kick_before_the_set_up_is_refused_and_a_wait_does_nothing() {
    let Some(kvm) = kvm() else { return };
    let disk = TestDisk::new(DISK_LEN, 1);
    let run = start(&kvm, &Rings::good(), &disk, |a| {
        note(a, 0, Hypercall::Kick, kick_target(0, 0), 0)?;
        note(a, 1, Hypercall::Wait, 0, Interest::DEVICES.bits())?;
        exit(a, 0)
    });
    assert_eq!(run.end, End::Exited(0));
    assert_eq!(word(&run, SAID), Status::Invalid.raw());
    assert_eq!(word(&run, SAID + 16 + 8), Interest::TIMER.bits());
    // Nonsense that no status calls finished is no set-up either.
    let mut rings = Rings::good();
    rings.setup.queues[0].size = 3;
    rings.setup.status &= !STATUS_DRIVER_OK;
    assert_eq!(look(&kvm, &rings, &disk).end, End::Exited(0));
    assert_eq!(disk.served(), 0);
}

/// Eight requests of 4 MiB each in one ring: the host does some, answers, and does
/// the rest at later looks, so that no guest holds a worker for long.
#[test]
fn one_look_does_a_bounded_amount() {
    let Some(kvm) = kvm() else { return };
    // All of the guest's memory that one request can ask for, and more.
    let disk = TestDisk::new(16 << 20, 3);
    let looks = |bytes: u32| {
        let mut rings = Rings::good();
        rings.descriptors[1] = (1 << 32, bytes, NEXT | WRITE, 2);
        rings.available = (8, vec![0; 8]);
        let manifest = Manifest::new("greedy", "1").with_device(DeviceKind::Block, "data");
        let code = assemble(|a| {
            set_up(a)?;
            note(a, 0, Hypercall::Wait, 0, 0)?;
            exit(a, 0)
        });
        let elf = ElfBuilder::guest(&code)
            .data(DESCRIPTORS, &rings.bytes())
            .segment(
                1 << 32,
                wharf_tests::elf::R | wharf_tests::elf::W,
                &[0; 16],
                8 << 20,
            )
            .manifest(manifest)
            .build();
        let image = Image::parse(elf).unwrap();
        let backends = vec![Backend::Block(Box::new(disk.clone()))];
        let machine = Machine::boot(&kvm, &image, &BootConfig::default(), backends).unwrap();
        let run = run_machine(machine);
        assert_eq!(run.end, End::Exited(0));
        (used_index(&run), memory(&run, STATUS, 1))
    };
    let most = u32::try_from(REQUEST_MAX).unwrap();
    assert_eq!(looks(most), (2, vec![0]));
    assert_eq!(looks(most / 2), (4, vec![0]));
    // Beyond the most of one request nothing is done at all.
    assert_eq!(looks(most + 512), (8, vec![1]));
}

/// Flushes, discards and writes that last each wait for a file system, for as long
/// as that likes: a ring full of them is done one a look, and other guests run between.
#[test]
fn one_look_waits_for_the_medium_once() {
    let Some(kvm) = kvm() else { return };
    const DISCARD: u64 = 1 << 13;
    let flush = vec![(HEADER, 16, NEXT, 1), (STATUS, 1, WRITE, 0)];
    let data = vec![
        (HEADER, 16, NEXT, 1),
        (DATA, 512, NEXT, 2),
        (STATUS, 1, WRITE, 0),
    ];
    // One sector, the second.
    let segment = vec![
        (HEADER, 16, NEXT, 1),
        (SETUP + 0x800, 16, NEXT, 2),
        (STATUS, 1, WRITE, 0),
    ];
    for (what, kind, features, descriptors, served) in [
        ("flushes", 4, FLUSH, &flush, 1),
        ("writes that last", 1, 0, &data, 1),
        ("writes", 1, FLUSH, &data, 8),
        ("discards", 11, DISCARD | FLUSH, &segment, 1),
    ] {
        let disk = TestDisk::new(DISK_LEN, 3);
        let mut rings = Rings::good();
        rings.setup.features = FEATURE_VERSION_1 | FEATURE_EVENT_IDX | features;
        rings.header.0 = kind;
        rings.descriptors = descriptors.clone();
        rings.available = (8, vec![0; 8]);
        let run = start(&kvm, &rings, &disk, |a| {
            set_up(a)?;
            // The segment of a discard, where the set-up needs nothing.
            a.mov(rdi, SETUP + 0x800)?;
            a.mov(dword_ptr(rdi), 1)?;
            a.mov(dword_ptr(rdi + 8), 1)?;
            call(a, Hypercall::Wait, 0, 0)?;
            exit(a, 0)
        });
        assert_eq!(run.end, End::Exited(0), "{what}");
        assert_eq!(used_index(&run), served, "{what}");
        assert_eq!(memory(&run, STATUS, 1), [0], "{what}");
    }
}

/// Writes whatever bytes into rings and set-up and has the host look.
#[test]
fn random_rings_end_in_a_fault_or_an_answer() {
    let Some(kvm) = kvm() else { return };
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for round in 0..300 {
        let disk = TestDisk::new(DISK_LEN, 9);
        let mut rings = Rings::good();
        rings.descriptors = (0..8)
            .map(|_| {
                let addr = match random(4) {
                    0 => random(u64::MAX),
                    1 => CODE_ADDR + random(0x1000),
                    _ => DESCRIPTORS + random(END - DESCRIPTORS),
                };
                let len = [1, 16, 512, 1024, u32::MAX, 0][random(6) as usize];
                (addr, len, random(8) as u16, random(10) as u16)
            })
            .collect();
        rings.available = (
            random(12) as u16,
            (0..8).map(|_| random(10) as u16).collect(),
        );
        rings.header = ([0, 1, 4, 8, 11, 77][random(6) as usize], random(70));
        let run = look(&kvm, &rings, &disk);
        let fault = matches!(run.end, End::Fault(Cause::Device(_)));
        assert!(
            fault || run.end == End::Exited(0),
            "round {round}: {:?}",
            run.end
        );
    }
}
