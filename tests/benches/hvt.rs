//! A guest of Solo5's hvt contract: what it costs beside what it must cost.
//!
//! `cargo bench --bench hvt` prints ratios, each of two things measured alternately in
//! the same run, and the goal of each. With `HVT_HELLO` it also runs that image, such as
//! Solo5's own `test_hello.hvt`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use iced_x86::code_asm::{dx, eax, esp, rax, rbx, rcx, rsp};
use wharf_tests::bench::{alternate, heading, micros, row, wall};
use wharf_tests::command::{output, wharf_path};
use wharf_tests::guest::{assemble, kvm};
use wharf_tests::hvt::{
    BLOCK, BLOCK_READ, HvtBuilder, PORT_BASE, TABLES, halt, puts, start_up, tables,
};

const ROUNDS: usize = 60;
const DATA: u64 = 0x60_0000;
const BLOCKS: u64 = 2000;

fn main() {
    if kvm().is_none() {
        return;
    }
    heading();
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("hello.hvt");
    fs::write(&image, hello()).unwrap();
    whole_process("hello", &image);
    if let Some(image) = std::env::var_os("HVT_HELLO") {
        whole_process("HVT_HELLO", image.as_ref());
    }
    blocks(directory.path());
}

/// Start to exit, beside the least that any KVM host does.
fn whole_process(what: &str, image: &Path) {
    let mut floor = Command::new(env!("CARGO_BIN_EXE_floor"));
    let mut ours = Command::new(wharf_path());
    ours.arg("run").arg(image);
    let (floor, ours) = alternate(ROUNDS, || wall(&mut floor), || wall(&mut ours));
    let ratio = ours.as_secs_f64() / floor.as_secs_f64();
    row(
        &format!("{what} for hvt, whole process : KVM floor"),
        &micros(ours),
        &micros(floor),
        ratio,
        "<= 2.5",
    );
}

/// Reads of 4 KiB, one behind the other, beside `pread` of the same.
fn blocks(directory: &Path) {
    let disk = directory.join("disk.img");
    fs::write(&disk, vec![1; 1 << 20]).unwrap();
    let image = directory.join("reads.hvt");
    fs::write(&image, reads()).unwrap();
    let mut command = Command::new(wharf_path());
    command.args(["run", "--stats", "--block"]);
    command
        .arg(format!("storage={}", disk.display()))
        .arg(&image);
    let printed = output(&mut command);
    assert_eq!(printed.status, 0, "{}", printed.stderr);
    let mut words = printed.stderr.split_whitespace();
    let mut after = |word: &str| words.find(|it| *it == word).and_then(|_| words.next());
    let exits: f64 = after("exits")
        .and_then(|n| n.parse().ok())
        .expect("--stats tells");
    let ms: f64 = after("in")
        .and_then(|n| n.parse().ok())
        .expect("--stats tells");
    row(
        "exits for each block of 4 KiB",
        &format!("{exits} exits"),
        "1",
        exits / BLOCKS as f64,
        "<= 2",
    );
    let each = Duration::from_secs_f64(ms / 1e3 / BLOCKS as f64);
    println!("{:<52} {:>14}", "a block of 4 KiB", micros(each));
}

/// Starts up as Solo5's guests do, greets, and ends.
fn hello() -> Vec<u8> {
    let code = assemble(|a| {
        start_up(a)?;
        puts(a, DATA, 14)?;
        halt(a, 0)
    });
    HvtBuilder::guest(&code)
        .data(TABLES, &tables(0))
        .data(DATA, b"Hello, world!\n")
        .build()
}

/// Reads as many blocks as [`BLOCKS`], round and round a disk of 1 MiB.
fn reads() -> Vec<u8> {
    let code = assemble(|a| {
        let mut again = a.create_label();
        a.mov(rbx, 0_u64)?;
        a.mov(rcx, BLOCKS)?;
        a.set_label(&mut again)?;
        a.push(0)?;
        a.push(4096)?;
        a.mov(rax, DATA)?;
        a.push(rax)?;
        a.push(rbx)?;
        a.push(1)?;
        a.mov(eax, esp)?;
        a.mov(dx, u32::from(PORT_BASE + BLOCK_READ))?;
        a.out(dx, eax)?;
        a.add(rsp, 40)?;
        a.add(rbx, 4096)?;
        a.and(rbx, 0xF_FFFF)?;
        a.dec(rcx)?;
        a.jnz(again)?;
        halt(a, 0)
    });
    HvtBuilder::guest(&code)
        .data(DATA, &[0; 4096])
        .device(BLOCK, "storage")
        .build()
}
