//! Guests of a few instructions, for tests.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, ecx, qword_ptr, rax, rdi, rsi};
use serde_json::Value;
use wharf_abi::device::{
    DeviceSetup, FEATURE_EVENT_IDX, FEATURE_VERSION_1, QUEUES_MAX, QueueSetup, STATUS_DRIVER_OK,
};
use wharf_abi::note::Note;
use wharf_abi::{Answer, DeviceKind, Hypercall, Interest, Manifest};
use zerocopy::IntoBytes;

use crate::device::{Backend, Disk};
use crate::handover::Luggage;
use crate::image::Image;
use crate::snapshot::{Saved, Snapshot};
use crate::{Buffers, Call, Exit, Hypervisor, Machine, UserSlice};

/// Where the guest's code and its data are.
const CODE: u64 = 0x40_0000;
pub(crate) const DATA: u64 = 0x50_0000;

/// Of the data, where a queue is, and what goes through it.
pub(crate) const USED: u64 = DATA + 0x2000;
pub(crate) const HEADER: u64 = DATA + 0x3000;
pub(crate) const BUFFER: u64 = DATA + 0x5000;
const AVAILABLE: u64 = DATA + 0x1000;
const SETUP: u64 = DATA + 0x4000;
const STATUS: u64 = DATA + 0x4800;
pub(crate) const COUNT: u64 = DATA + 0x6000;
const DATA_LEN: u64 = 0x8000;

/// Where segments begin in the file: behind three program headers, aligned.
const FILE_AT: u64 = 240;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

pub(crate) fn kvm() -> Option<Hypervisor> {
    if std::path::Path::new("/dev/kvm").exists() {
        return Some(Hypervisor::open().expect("/dev/kvm exists, so it must work"));
    }
    assert!(
        std::env::var_os("REQUIRE_KVM").is_none_or(|value| value != "1"),
        "REQUIRE_KVM=1, and there is no /dev/kvm"
    );
    // Not `eprintln!`, which the test harness swallows when the test passes.
    let _ = writeln!(io::stderr(), "SKIPPED: there is no /dev/kvm");
    None
}

/// An image with this code and data.
pub(crate) fn image(
    manifest: Manifest,
    data: &[u8],
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Image {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler).unwrap();
    let code = assembler.assemble(CODE).unwrap();
    let note = Note::new(manifest);
    let parts = [
        (1_u32, 5_u32, CODE, code.as_slice(), code.len() as u64),
        (1, 6, DATA, data, DATA_LEN),
        (4, 4, 0, note.as_bytes(), 0),
    ];
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2_u16, 62] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1_u32.to_le_bytes());
    for word in [CODE, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 3, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let mut at = FILE_AT;
    for (kind, flags, addr, bytes, len) in parts {
        elf.extend(kind.to_le_bytes());
        elf.extend(flags.to_le_bytes());
        let file_len = bytes.len() as u64;
        for word in [at, addr, addr, file_len, len.max(file_len), 16] {
            elf.extend(word.to_le_bytes());
        }
        at += file_len.next_multiple_of(16);
    }
    elf.resize(FILE_AT as usize, 0);
    for (_, _, _, bytes, _) in parts {
        elf.extend(bytes);
        elf.resize(elf.len().next_multiple_of(16), 0);
    }
    Image::parse(elf).unwrap()
}

/// Writes a wait that looks at everything.
pub(crate) fn wait(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rdi, 0_u64)?;
    a.mov(rsi, Interest::device(0).bits())?;
    a.out(i32::from(Hypercall::Wait.port()), al)
}

/// Counts in R15 and in memory, and waits after each.
pub(crate) fn counter() -> Image {
    image(Manifest::new("counter", "1"), &[], |a| {
        use iced_x86::code_asm::{dword_ptr, r15, rdx, xmm3};
        let mut again = a.create_label();
        a.mov(rdi, DATA)?;
        a.mov(rax, 0x1122_3344_5566_7788_u64)?;
        a.movq(xmm3, rax)?;
        a.mov(dword_ptr(rdi + 64), 0x7F80)?;
        a.ldmxcsr(dword_ptr(rdi + 64))?;
        a.set_label(&mut again)?;
        a.inc(r15)?;
        wait(a)?;
        a.mov(rdi, DATA)?;
        a.mov(qword_ptr(rdi + 8), rax)?;
        a.mov(qword_ptr(rdi + 16), rdx)?;
        a.movq(qword_ptr(rdi + 24), xmm3)?;
        a.stmxcsr(dword_ptr(rdi + 32))?;
        a.inc(qword_ptr(rdi))?;
        a.jmp(again)
    })
}

/// Sets its first device up and puts its only request into queue 0 again and again.
pub(crate) fn driver(manifest: Manifest, has_header: bool) -> Image {
    let mut data = vec![0_u8; DATA_LEN as usize];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = (at - DATA) as usize;
        data[at..at + bytes.len()].copy_from_slice(bytes);
    };
    // With a header it is a read of sector 1, without it is a buffer.
    let descriptors: &[(u64, u32, u16, u16)] = match has_header {
        true => &[
            (HEADER, 16, NEXT, 1),
            (BUFFER, 512, NEXT | WRITE, 2),
            (STATUS, 1, WRITE, 0),
        ],
        false => &[(BUFFER, 512, WRITE, 0)],
    };
    for (at, &(addr, len, flags, next)) in (DATA..).step_by(16).zip(descriptors) {
        put(at, &addr.to_le_bytes());
        put(at + 8, &len.to_le_bytes());
        put(at + 12, &flags.to_le_bytes());
        put(at + 14, &next.to_le_bytes());
    }
    put(HEADER + 8, &1_u64.to_le_bytes());
    let mut queues = [QueueSetup::default(); QUEUES_MAX];
    queues[0] = QueueSetup {
        size: 8,
        enabled: 1,
        descriptors: DATA,
        driver_area: AVAILABLE,
        device_area: USED,
    };
    let setup = DeviceSetup {
        status: STATUS_DRIVER_OK,
        reserved: 0,
        features: FEATURE_VERSION_1 | FEATURE_EVENT_IDX,
        queues,
    };
    put(SETUP, setup.as_bytes());
    image(manifest, &data, |a| {
        use iced_x86::code_asm::word_ptr;
        let mut again = a.create_label();
        a.mov(rax, qword_ptr(rdi + 152))?;
        a.mov(rdi, qword_ptr(rax + 40))?;
        a.add(rdi, 256)?;
        a.mov(rsi, SETUP)?;
        a.mov(ecx, 272)?;
        a.rep().movsb()?;
        a.set_label(&mut again)?;
        a.mov(rdi, AVAILABLE)?;
        a.inc(word_ptr(rdi + 2))?;
        wait(a)?;
        a.mov(rdi, COUNT)?;
        a.inc(qword_ptr(rdi))?;
        a.jmp(again)
    })
}

/// Runs up to the next wait. What the guest was doing before is answered with this.
pub(crate) fn to_wait(machine: &mut Machine, answer: Option<u64>) {
    let mut answer = answer.map(Answer::ok);
    loop {
        match machine.enter(answer.take()).unwrap() {
            Exit::Call(Call::Wait { .. }) => return,
            Exit::Interrupted => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The same with its devices looked at when it waits.
pub(crate) fn to_served_wait(machine: &mut Machine, answer: Option<u64>) {
    to_wait(machine, answer);
    machine.serve().unwrap();
}

pub(crate) fn word(machine: &Machine, addr: u64) -> u64 {
    let slice = UserSlice { addr, len: 8 };
    u64::from_le_bytes(machine.read_user(slice).unwrap().try_into().unwrap())
}

/// A directory with a snapshot in it.
pub(crate) struct Frozen {
    pub(crate) path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Frozen {
    pub(crate) fn new(saved: &Saved, image: &Image) -> Self {
        let frozen = Self::file(&[]);
        saved.write_to(image, &frozen.path).unwrap();
        frozen
    }

    /// A file of just these bytes.
    pub(crate) fn file(bytes: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("guest.snap");
        std::fs::write(&path, bytes).unwrap();
        Self {
            path,
            _directory: directory,
        }
    }

    pub(crate) fn open(&self, kvm: &Hypervisor) -> Arc<Snapshot> {
        Arc::new(Snapshot::open(kvm, &self.path).unwrap())
    }
}

/// A disk whose sectors are how often it was read. Its clones are the same disk.
#[derive(Clone, Debug)]
pub(crate) struct TestDisk(pub(crate) Arc<Mutex<u64>>);

impl Disk for TestDisk {
    fn len(&self) -> u64 {
        64 * 512
    }
    fn is_read_only(&self) -> bool {
        true
    }
    fn can_discard(&self) -> bool {
        false
    }
    fn id(&self) -> &str {
        "test"
    }
    fn read(&mut self, _: u64, into: &Buffers<'_>) -> io::Result<()> {
        let mut count = self.0.lock().unwrap();
        *count += 1;
        into.copy_in(&count.to_le_bytes());
        Ok(())
    }
    fn write(&mut self, _: u64, _: &Buffers<'_>) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&mut self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn carry(&self, _: &mut Luggage) -> io::Result<Value> {
        Ok(Value::from(*self.0.lock().unwrap()))
    }
}

pub(crate) fn disk(count: u64) -> (TestDisk, Vec<Backend>) {
    let disk = TestDisk(Arc::new(Mutex::new(count)));
    (disk.clone(), vec![Backend::Block(Box::new(disk))])
}

/// A guest that reads its disk over and over.
pub(crate) fn disk_driver() -> Image {
    let manifest = Manifest::new("driver", "1");
    driver(manifest.with_device(DeviceKind::Block, "data"), true)
}
