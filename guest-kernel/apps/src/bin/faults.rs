//! Dies in the way that its argument names; without one it lists the ways.
//!
//! Whoever survives says so and exits with status 99: the host has a hole.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;
use core::fmt;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use wharf::{ExitCode, Interest, boot, println};

#[wharf::main]
fn main() -> ExitCode {
    let Some(way) = wharf::args().next() else {
        println!("exit-N");
        for (name, _) in WAYS {
            println!("{name}");
        }
        return ExitCode::SUCCESS;
    };
    if let Some(status) = way
        .strip_prefix("exit-")
        .and_then(|status| status.parse::<u8>().ok())
    {
        return status.into();
    }
    let Some((_, die)) = WAYS.iter().find(|(name, _)| *name == way) else {
        println!("no way to die is called `{way}`; without an argument this lists them");
        return ExitCode::FAILURE;
    };
    die();
    println!("survived {way}");
    ExitCode::from(99)
}

/// Executes instructions that end the guest.
macro_rules! execute {
    ($($operand:tt)+) => {
        // SAFETY: none. If the host lets the guest go on, it is lost anyway.
        unsafe { asm!($($operand)+, clobber_abi("sysv64")) }
    };
}

type Way = (&'static str, fn());

const WAYS: &[Way] = &[
    // The guest gives up by itself.
    ("panic", || panic!("as asked")),
    ("nested-panic", || panic!("{}", PanicsWhenShown)),
    ("heap-exhausted", exhaust_heap),
    ("allocation-too-large", || {
        drop(black_box(Vec::<u8>::with_capacity(1 << 46)))
    }),
    // Memory that is not there, or not for that.
    ("null-read", || read(0)),
    ("null-write", || write(0)),
    ("null-jump", || call(0)),
    ("noncanonical-read", || read(1 << 63)),
    ("top-of-memory-read", || read(u64::MAX - 7)),
    ("write-text", || write(read as fn(u64) as usize as u64)),
    ("write-rodata", || {
        write((&raw const RETURN_RODATA).addr() as u64)
    }),
    ("write-boot-page", || write(boot().args.addr)),
    ("read-below-image", || read(boot().image.addr - 1)),
    ("read-stack-guard", || read(boot().stack.addr - 8)),
    ("execute-rodata", || {
        call((&raw const RETURN_RODATA).addr() as u64)
    }),
    ("execute-data", || call(RETURN_DATA.as_ptr().addr() as u64)),
    ("execute-stack", || {
        call((&raw const *black_box(&RETURN.to_le_bytes())).addr() as u64)
    }),
    ("execute-heap", || {
        call((&raw const *black_box(Box::new(RETURN))).addr() as u64)
    }),
    ("execute-boot-page", || call(boot().args.addr)),
    // The stack.
    ("stack-overflow", || recurse(0)),
    (
        "stack-noncanonical",
        || execute!("mov rsp, {}", "push rax", in(reg) 1_u64 << 63),
    ),
    ("stack-gone", || execute!("xor esp, esp", "ud2")),
    (
        "stack-in-boot-page",
        || execute!("mov rsp, {}", "push rax", in(reg) boot().args.addr),
    ),
    // Exceptions of the processor.
    ("divide", || execute!("xor eax, eax", "cdq", "div eax")),
    ("invalid-opcode", || execute!("ud2")),
    ("breakpoint", || execute!("int3")),
    ("debug-trap", || execute!(".byte 0xf1")),
    ("single-step", || {
        execute!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop")
    }),
    ("interrupt", || execute!("int 0x20")),
    ("linux-system-call", || execute!("int 0x80")),
    ("system-call", || execute!("syscall")),
    ("unaligned-sse", || execute!("movaps xmm0, [rsp + 1]")),
    ("simd-exception", || {
        execute!(
            "mov dword ptr [rsp - 4], 0x1d80", // All exceptions masked but division by zero.
            "ldmxcsr [rsp - 4]",
            "xorps xmm0, xmm0",
            "mov eax, 1",
            "cvtsi2ss xmm1, eax",
            "divss xmm1, xmm0"
        )
    }),
    ("x87-exception", || {
        execute!(
            "mov word ptr [rsp - 4], 0x37b", // The same for the x87 unit.
            "fldcw [rsp - 4]",
            "fld1",
            "fldz",
            "fdivp",
            "fwait"
        )
    }),
    // What only a kernel may do.
    ("halt", || execute!("hlt")),
    ("disable-interrupts", || execute!("cli")),
    ("read-msr", || execute!("xor ecx, ecx", "rdmsr")),
    ("write-page-table-base", || execute!("mov cr3, rax")),
    ("load-descriptor-table", || execute!("lgdt [rsp]")),
    ("load-segment", || execute!("mov eax, 0x8", "mov ss, eax")),
    ("return-to-ring-0", || {
        execute!("push 0x8", "lea rax, [rip]", "push rax", "retfq")
    }),
    // Ports that are no hypercall, and hypercalls made wrongly.
    ("port", || execute!("out 0x80, al")),
    ("port-by-register", || {
        execute!("mov edx, 0x3f8", "out dx, al")
    }),
    ("hand-over-of-nobodys", || {
        execute!("mov edi, 0x10", "mov esi, 16", "out 0xe4, al")
    }),
    ("port-no-hypercall", || execute!("out 0xe6, al")),
    ("hypercall-in", || execute!("in al, 0xe2")),
    ("hypercall-16-bit", || {
        execute!("xor esi, esi", "out 0xe2, ax")
    }),
    ("hypercall-32-bit", || {
        execute!("xor esi, esi", "out 0xe2, eax")
    }),
    ("hypercall-16-bit-across", || {
        execute!("xor esi, esi", "out 0xe1, ax")
    }),
    ("hypercall-string", || {
        execute!("mov rsi, rsp", "mov edx, 0xe2", "outsb")
    }),
    ("hypercall-string-repeated", || {
        execute!("mov rsi, rsp", "mov edx, 0xe2", "mov ecx, 64", "rep outsb")
    }),
    ("console-null", || console(0, 1)),
    ("console-noncanonical", || console(1 << 63, 1)),
    ("console-wraps-around", || console(u64::MAX - 1, 16)),
    ("console-too-long", || console(boot().stack.addr, 1 << 62)),
    ("console-stack-guard", || console(boot().stack.addr - 1, 2)),
    ("console-below-image", || console(boot().image.addr - 1, 2)),
    // Not dead, but no use to anyone.
    ("loop", || execute!("2:", "jmp 2b")),
    ("wait-for-ever", wait_for_ever),
];

/// Machine code: eight times `ret`, so that code which does run returns.
const RETURN: u64 = 0xC3C3_C3C3_C3C3_C3C3;
static RETURN_RODATA: u64 = RETURN;
static RETURN_DATA: AtomicU64 = AtomicU64::new(RETURN);

fn read(addr: u64) {
    execute!("mov rax, [{}]", in(reg) addr);
}

fn write(addr: u64) {
    execute!("mov byte ptr [{}], 0", in(reg) addr);
}

fn call(addr: u64) {
    execute!("call {}", in(reg) addr);
}

fn wait_for_ever() {
    wharf::wait(None, Interest::NONE);
}

/// Has the host read `len` bytes from `addr` on.
fn console(addr: u64, len: u64) {
    execute!("out 0xe2, al", in("rdi") addr, in("rsi") len);
}

#[expect(
    unconditional_recursion,
    reason = "the way to die is to do so too often"
)]
fn recurse(depth: u64) {
    let frame = [depth; 32];
    recurse(depth + 1);
    black_box(frame);
}

fn exhaust_heap() {
    let mut kept = Vec::new();
    loop {
        kept.push(Vec::<u8>::with_capacity(64 * 1024));
        RETURN_DATA.fetch_add(black_box(kept.len() as u64), Ordering::Relaxed);
    }
}

struct PanicsWhenShown;

impl fmt::Display for PanicsWhenShown {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("as it was shown")
    }
}
