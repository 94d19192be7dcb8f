//! Files that are snapshots, and files that are not.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use iced_x86::code_asm::CodeAssembler;
use proptest::prelude::*;
use wharf_abi::Manifest;

use crate::BootConfig;
use crate::image::Image;
use crate::machine::Origin;
use crate::memory::LargeBuffer;
use crate::snapshot::state::{Cpu, Registers, State};
use crate::snapshot::{Saved, Snapshot, Unusable, WriteError, file};
use crate::testing::{Frozen, counter, image, kvm};

const MEMORY: u64 = 1 << 20;

/// A guest that never ran, with something in pages 1, 2 and the last.
fn saved() -> Saved {
    let numbers = vec![0, 1, 2, 255];
    let mut pages = LargeBuffer::new(4 * 4096);
    pages[4096..].fill(0xA5);
    let registers = kvm_bindings::kvm_regs {
        rip: 0x40_0000,
        ..Default::default()
    };
    let mut fpu = vec![0; 128];
    fpu[6] = 0x1F80;
    Saved {
        state: State {
            cpu: Cpu::of(&kvm_bindings::CpuId::new(0).unwrap()),
            origin: Origin {
                boot: BootConfig {
                    memory: MEMORY,
                    ..BootConfig::default()
                },
                random: 7,
                inherited: 0,
            },
            monotonic_ns: 5,
            registers: Registers::new(&registers),
            fpu,
            devices: Vec::new(),
        },
        memory_len: MEMORY,
        numbers,
        pages,
    }
}

fn open(path: &Path) -> Result<Option<()>, Unusable> {
    let opened = file::open(path)?;
    let checked = opened.state.check(&opened.image, opened.memory_len);
    checked.map(|_| Some(()))
}

fn refusal(path: &Path) -> Unusable {
    open(path).expect_err("a snapshot that is none was taken for one")
}

#[test]
fn what_was_written_is_read_and_takes_no_more_than_there_is() {
    use std::os::unix::fs::MetadataExt;
    let (saved, image) = (saved(), counter());
    let frozen = Frozen::new(&saved, &image);
    let opened = file::open(&frozen.path).unwrap();
    assert_eq!(opened.state, saved.state);
    assert_eq!(opened.image.bytes(), image.bytes());
    assert_eq!(opened.memory_len, MEMORY);
    let mut page = [0; 4096];
    for (number, byte) in [(0, 0), (1, 0xA5), (2, 0xA5), (3, 0), (254, 0), (255, 0xA5)] {
        let at = opened.memory_at + number * 4096;
        opened.file.read_exact_at(&mut page, at).unwrap();
        assert_eq!(page, [byte; 4096], "{number}");
    }
    let metadata = std::fs::metadata(&frozen.path).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o600);
    assert!(metadata.blocks() * 512 < MEMORY / 4);
    let entries = std::fs::read_dir(frozen.path.parent().unwrap()).unwrap();
    assert_eq!(entries.count(), 1);
}

#[test]
fn no_byte_may_be_another() {
    let frozen = Frozen::new(&saved(), &counter());
    let opened = file::open(&frozen.path).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&frozen.path)
        .unwrap();
    let memory = (0..MEMORY).step_by(3989).chain([4096, 8191, MEMORY - 1]);
    for at in (0..opened.memory_at).chain(memory.map(|at| opened.memory_at + at)) {
        let mut was = [0];
        file.read_exact_at(&mut was, at).unwrap();
        file.write_all_at(&[was[0] ^ 1 << (at % 8)], at).unwrap();
        let why = refusal(&frozen.path);
        match at {
            0..8 => assert!(matches!(why, Unusable::NotSnapshot), "{at}: {why}"),
            8..12 => assert!(matches!(why, Unusable::Version { .. }), "{at}: {why}"),
            _ => assert!(
                matches!(why, Unusable::Corrupt { .. } | Unusable::Length { .. }),
                "{at}: {why}"
            ),
        }
        file.write_all_at(&was, at).unwrap();
    }
    open(&frozen.path).unwrap();
}

#[test]
fn nothing_may_be_missing_or_too_much() {
    let frozen = Frozen::new(&saved(), &counter());
    let whole = std::fs::read(&frozen.path).unwrap();
    let len = whole.len();
    let lens = (0..100)
        .chain((100..len).step_by(4099))
        .chain([len - 1, len + 1, len + 4096]);
    for len in lens {
        let mut part = whole.clone();
        part.resize(len, 0);
        let why = refusal(&Frozen::file(&part).path);
        assert!(matches!(why, Unusable::Length { .. }), "{len}: {why}");
    }
    // A sparse copy is as good as a full one.
    open(&Frozen::file(&whole).path).unwrap();
}

#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(refusal(directory.path()), Unusable::NotRegular));
    assert!(matches!(
        refusal(Path::new("/dev/null")),
        Unusable::NotRegular
    ));
    assert!(matches!(
        refusal(&directory.path().join("none")),
        Unusable::Io(_)
    ));
    let pipe = directory.path().join("pipe");
    let made = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap();
    assert!(made.success());
    assert!(matches!(refusal(&pipe), Unusable::NotRegular));

    let (saved, image) = (saved(), counter());
    for path in [directory.path(), Path::new("/dev/null"), &pipe] {
        let refused = saved.write_to(&image, path).unwrap_err();
        assert!(
            matches!(refused, WriteError::NotRegular { .. }),
            "{refused}"
        );
    }
    let nowhere = directory.path().join("no/where");
    let refused = saved.write_to(&image, &nowhere).unwrap_err();
    assert!(matches!(refused, WriteError::Io { .. }), "{refused}");
}

#[test]
fn a_snapshot_that_does_not_become_whole_leaves_the_one_before() {
    let (mut saved, image) = (saved(), counter());
    let frozen = Frozen::new(&saved, &image);
    let before = std::fs::read(&frozen.path).unwrap();
    // A page behind all that files can have.
    saved.numbers = vec![0, 1, 2, u64::MAX >> 13];
    let refused = saved.write_to(&image, &frozen.path).unwrap_err();
    assert!(!refused.to_string().contains('\n'));
    assert_eq!(std::fs::read(&frozen.path).unwrap(), before);
    let entries = std::fs::read_dir(frozen.path.parent().unwrap()).unwrap();
    assert_eq!(entries.count(), 1);
}

#[test]
fn a_full_disk_is_said_to_be_full() {
    let mut full = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/full")
        .unwrap();
    let error = file::write(&saved(), &counter(), &mut full).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    let said = file::failed(&saved(), &counter(), Path::new("here"), error);
    let said = said.to_string();
    assert!(said.starts_with("no room for snapshot here ("), "{said}");
}

/// Writes a state with right checksums.
fn forged(edit: impl FnOnce(&mut Saved), image: &Image) -> Frozen {
    let mut forged = saved();
    edit(&mut forged);
    let frozen = Frozen::file(&[]);
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(&frozen.path)
        .unwrap();
    file::write(&forged, image, &mut file).unwrap();
    frozen
}

#[test]
fn what_no_guest_can_be_is_refused() {
    type Edit = fn(&mut Saved);
    let cases: [(&str, Edit); 13] = [
        ("two sizes", |it| it.memory_len *= 2),
        ("no memory", |it| {
            (it.state.origin.boot.memory, it.memory_len) = (0, 0);
            it.numbers.clear();
        }),
        ("a little memory", |it| {
            (it.state.origin.boot.memory, it.memory_len) = (4096, 4096);
            it.numbers.clear();
        }),
        ("uneven memory", |it| {
            (it.state.origin.boot.memory, it.memory_len) = (MEMORY + 1, MEMORY + 1);
        }),
        ("absurd memory", |it| {
            (it.state.origin.boot.memory, it.memory_len) = (1 << 37, 1 << 37);
        }),
        ("an heir without its room", |it| {
            it.state.origin.boot.is_heir = true;
        }),
        ("state without room", |it| it.state.origin.inherited = 1),
        ("a high RIP", |it| rip(it, u64::MAX)),
        ("a RIP at the hole", |it| rip(it, 1 << 47)),
        ("no FPU", |it| it.state.fpu.clear()),
        ("half an FPU", |it| it.state.fpu.truncate(64)),
        ("devices", |it| {
            it.state.devices.resize(1, Default::default());
        }),
        ("many devices", |it| {
            it.state.devices.resize(3000, Default::default());
        }),
    ];
    for (name, edit) in cases {
        let why = refusal(&forged(edit, &counter()).path);
        let said = why.to_string();
        assert!(
            matches!(
                why,
                Unusable::Malformed(_) | Unusable::Layout(_) | Unusable::Corrupt { part: "header" }
            ),
            "{name}: {said}"
        );
        assert!(!said.contains('\n'), "{name}: {said}");
    }
}

fn rip(saved: &mut Saved, rip: u64) {
    saved.state.registers = Registers::new(&kvm_bindings::kvm_regs {
        rip,
        ..Default::default()
    });
}

#[test]
fn flags_that_only_a_kernel_has_are_refused() {
    let state = serde_json::to_string(&saved().state).unwrap();
    // IOPL, TF, VM, VIF and IF cleared.
    for flags in [0x3202_u64, 0x302, 0x2_0202, 0x8_0202, 2, 0x200, u64::MAX] {
        let forged = state.replace("\"rflags\":514", &format!("\"rflags\":{flags}"));
        assert_ne!(forged, state);
        let state: State = serde_json::from_str(&forged).unwrap();
        let why = state.check(&counter(), MEMORY).unwrap_err();
        assert!(matches!(why, Unusable::Malformed(_)), "{flags:#x}: {why}");
    }
}

#[test]
fn an_image_that_is_not_the_guests_is_not_written() {
    let path = Frozen::file(&[]).path;
    let other = image(
        Manifest::new("other", "1").with_device(wharf_abi::DeviceKind::Entropy, "random"),
        &[],
        CodeAssembler::nop,
    );
    let refused = saved().write_to(&other, &path).unwrap_err();
    assert!(matches!(refused, WriteError::Image), "{refused}");
}

#[test]
fn another_cpu_is_refused_by_name() {
    let Some(kvm) = kvm() else { return };
    // Its CPU says nothing of itself.
    let frozen = Frozen::new(&saved(), &counter());
    let refused = Snapshot::open(&kvm, &frozen.path).unwrap_err().to_string();
    assert!(
        refused.contains("guest.snap: taken on another CPU"),
        "{refused}"
    );
    assert!(!refused.contains(|it: char| it.is_control()), "{refused}");
}

proptest! {
    #[test]
    fn random_bytes_are_no_snapshot(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        refusal(&Frozen::file(&bytes).path);
    }

    #[test]
    fn headers_of_random_numbers_are_refused(
        words in prop::collection::vec(prop_oneof![any::<u32>(), 0_u32..10_000], 9),
        len in 0_usize..20_000,
    ) {
        let mut bytes = [b"WHARFSNP".as_slice(), &1_u32.to_le_bytes()].concat();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.resize(len, 0);
        refusal(&Frozen::file(&bytes).path);
    }

    #[test]
    fn descriptions_of_random_text_are_refused(text in ".{0,200}") {
        let state: Result<State, _> = serde_json::from_str(&text);
        prop_assert!(state.is_err());
    }
}
