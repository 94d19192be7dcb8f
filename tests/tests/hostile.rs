//! Attacks, one guest each. Every one is stopped, and the next guest runs.

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, al, ax, byte_ptr, cr0, cr2, cr3, cr4, cr8, dr0, dr7, dx, eax, ecx, es, fs,
    fword_ptr, gs, ptr, qword_ptr, rax, rbp, rcx, rdi, rsi, rsp, ss, xmm0, xmmword_ptr,
};
use wharf_abi::Hypercall;
use wharf_machine::fault::{Cause, Exception};
use wharf_machine::image::Image;
use wharf_machine::memory::PAGE;
use wharf_machine::{BootConfig, Hypervisor, Machine, UserSlice};
use wharf_tests::elf::{CODE_ADDR, ElfBuilder, R, W};
use wharf_tests::guest::{End, assemble, call, exit, kvm, run, run_code, run_machine};

const DIVIDE: u8 = 0;
const BREAKPOINT: u8 = 3;
const INVALID_OPCODE: u8 = 6;
const PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;

const DATA: u64 = 0x50_0000;
const RODATA: u64 = 0x60_0000;

/// Writes instructions.
type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

type Attack = (&'static str, Write, &'static [u8]);

/// Runs an attack and says what exception, if any, stopped it.
fn stopped_by(kvm: &Hypervisor, attack: &Attack) -> Result<Exception, End> {
    let (_, write, _) = attack;
    let code = assemble(|a| {
        write(a)?;
        exit(a, 99)
    });
    let elf = ElfBuilder::guest(&code)
        .data(DATA, &[0xC3; 64])
        .segment(RODATA, R, &[0xC3; 64], 64)
        .build();
    match run(kvm, elf, &BootConfig::default()).end {
        End::Fault(Cause::Exception(exception)) => Ok(exception),
        end => Err(end),
    }
}

/// Every attack must end in one of its exceptions, and a guest after it must run.
fn all_are_stopped(attacks: &[Attack]) {
    let Some(kvm) = kvm() else { return };
    let innocent = assemble(|a| exit(a, 0));
    let mut failures = Vec::new();
    for attack in attacks {
        match stopped_by(&kvm, attack) {
            Ok(exception) if attack.2.contains(&exception.vector) => {}
            other => failures.push(format!("{}: {other:?}", attack.0)),
        }
        assert_eq!(
            run_code(&kvm, &innocent).end,
            End::Exited(0),
            "after {}",
            attack.0
        );
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn memory_is_what_the_image_says_it_is() {
    all_are_stopped(&[
        (
            "write text",
            |a| a.mov(byte_ptr(CODE_ADDR), 0x90),
            &[PAGE_FAULT],
        ),
        (
            "write read-only data",
            |a| a.mov(byte_ptr(RODATA), 0),
            &[PAGE_FAULT],
        ),
        (
            "write the boot page",
            |a| a.mov(byte_ptr(rdi), 0),
            &[PAGE_FAULT],
        ),
        ("execute data", |a| a.call(DATA), &[PAGE_FAULT]),
        ("execute read-only data", |a| a.call(RODATA), &[PAGE_FAULT]),
        ("execute the boot page", |a| a.jmp(rdi), &[PAGE_FAULT]),
        (
            "execute the stack",
            |a| {
                a.mov(rax, 0xC3C3_C3C3_C3C3_C3C3_u64)?;
                a.push(rax)?;
                a.jmp(rsp)
            },
            &[PAGE_FAULT],
        ),
        (
            "execute the heap",
            |a| {
                a.mov(rax, qword_ptr(rdi + 112))?;
                a.mov(byte_ptr(rax), 0xC3)?;
                a.call(rax)
            },
            &[PAGE_FAULT],
        ),
        ("read null", |a| a.mov(rax, qword_ptr(0)), &[PAGE_FAULT]),
        (
            "read the end of the null page",
            |a| a.mov(al, byte_ptr(0xFFF)),
            &[PAGE_FAULT],
        ),
        ("write null", |a| a.mov(byte_ptr(0), 1), &[PAGE_FAULT]),
        (
            "jump to null",
            |a| {
                a.xor(eax, eax)?;
                a.jmp(rax)
            },
            &[PAGE_FAULT],
        ),
        (
            "read behind the text's page",
            |a| a.mov(al, byte_ptr(CODE_ADDR + PAGE)),
            &[PAGE_FAULT],
        ),
        (
            "read the system page",
            |a| a.mov(al, byte_ptr(rdi + 0x2000)),
            &[PAGE_FAULT],
        ),
        (
            "write the system page",
            |a| a.mov(byte_ptr(rdi + 0x2000), 0),
            &[PAGE_FAULT],
        ),
        (
            "call a fault stub",
            |a| {
                a.lea(rax, ptr(rdi + 0x1400))?;
                a.call(rax)
            },
            &[PAGE_FAULT],
        ),
        (
            "read the fault stack",
            |a| a.mov(al, byte_ptr(rdi + 0x2FFF)),
            &[PAGE_FAULT],
        ),
        (
            "read the stack's guard page",
            |a| {
                a.mov(rax, qword_ptr(rdi + 96))?;
                a.mov(al, byte_ptr(rax - 1))
            },
            &[PAGE_FAULT],
        ),
        (
            "read behind the heap",
            |a| {
                a.mov(rax, qword_ptr(rdi + 112))?;
                a.add(rax, qword_ptr(rdi + 120))?;
                a.mov(al, byte_ptr(rax))
            },
            &[PAGE_FAULT],
        ),
        (
            "read the upper half",
            |a| {
                a.mov(rax, 0xFFFF_8000_0000_0000_u64)?;
                a.mov(al, byte_ptr(rax))
            },
            &[PAGE_FAULT],
        ),
        (
            "read the last byte there is",
            |a| {
                a.mov(rax, u64::MAX)?;
                a.mov(al, byte_ptr(rax))
            },
            &[PAGE_FAULT],
        ),
        (
            "read a non-canonical address",
            |a| {
                a.mov(rax, 0x8000_0000_0000_0000_u64)?;
                a.mov(al, byte_ptr(rax))
            },
            &[PROTECTION],
        ),
        (
            "recurse without end",
            |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.call(again)
            },
            &[PAGE_FAULT],
        ),
    ]);
}

#[test]
fn every_privileged_instruction_is_refused() {
    // KVM-PVM raises #UD where the manual has #GP for some of these; either stops.
    const REFUSED: &[u8] = &[PROTECTION, INVALID_OPCODE];
    all_are_stopped(&[
        ("hlt", |a| a.hlt(), REFUSED),
        ("cli", |a| a.cli(), REFUSED),
        ("sti", |a| a.sti(), REFUSED),
        ("clts", |a| a.clts(), REFUSED),
        ("invd", |a| a.invd(), REFUSED),
        ("wbinvd", |a| a.wbinvd(), REFUSED),
        ("invlpg", |a| a.invlpg(byte_ptr(rax)), REFUSED),
        ("swapgs", |a| a.swapgs(), REFUSED),
        ("lgdt", |a| a.lgdt(fword_ptr(rsp - 16)), REFUSED),
        ("lidt", |a| a.lidt(fword_ptr(rsp - 16)), REFUSED),
        ("lldt", |a| a.lldt(ax), REFUSED),
        ("ltr", |a| a.ltr(ax), REFUSED),
        ("lmsw", |a| a.lmsw(ax), REFUSED),
        ("read cr0", |a| a.mov(rax, cr0), REFUSED),
        ("read cr2", |a| a.mov(rax, cr2), REFUSED),
        ("read cr3", |a| a.mov(rax, cr3), REFUSED),
        ("read cr4", |a| a.mov(rax, cr4), REFUSED),
        ("read cr8", |a| a.mov(rax, cr8), REFUSED),
        ("write cr0", |a| a.mov(cr0, rax), REFUSED),
        ("write cr3", |a| a.mov(cr3, rax), REFUSED),
        ("write cr4", |a| a.mov(cr4, rax), REFUSED),
        ("write cr8", |a| a.mov(cr8, rax), REFUSED),
        ("read dr0", |a| a.mov(rax, dr0), REFUSED),
        ("write dr7", |a| a.mov(dr7, rax), REFUSED),
        ("rdmsr", |a| a.rdmsr(), REFUSED),
        ("wrmsr", |a| a.wrmsr(), REFUSED),
        ("rdpmc", |a| a.rdpmc(), REFUSED),
        ("xsetbv", |a| a.xsetbv(), REFUSED),
        ("monitor", |a| a.monitor(), REFUSED),
        ("mwait", |a| a.mwait(), REFUSED),
        ("rsm", |a| a.rsm(), REFUSED),
        ("sysexit", |a| a.sysexit(), REFUSED),
        ("sysenter", |a| a.sysenter(), REFUSED),
        ("sysretq", |a| a.sysretq(), REFUSED),
        // No SCE: invalid opcode. KVM-PVM goes to LSTAR, 0, all the same: the null page.
        ("syscall", |a| a.syscall(), &[INVALID_OPCODE, PAGE_FAULT]),
        ("vmlaunch", |a| a.vmlaunch(), REFUSED),
        ("vmxoff", |a| a.vmxoff(), REFUSED),
        ("vmread", |a| a.vmread(rax, rcx), REFUSED),
        ("vmrun", |a| a.vmrun(), REFUSED),
        ("stgi", |a| a.stgi(), REFUSED),
        ("clgi", |a| a.clgi(), REFUSED),
        ("getsec", |a| a.getsec(), REFUSED),
        (
            "invpcid",
            |a| a.invpcid(rax, xmmword_ptr(rsp - 16)),
            REFUSED,
        ),
        ("stac", |a| a.stac(), REFUSED),
        ("clac", |a| a.clac(), REFUSED),
        ("encls", |a| a.encls(), REFUSED),
        ("int 0x80", |a| a.int(0x80), REFUSED),
        ("int of a fault vector", |a| a.int(14), REFUSED),
        // KVM-PVM lets the host's IDT say who may raise it.
        ("int of the overflow", |a| a.int(4), &[PROTECTION, 4]),
        ("int of the double fault", |a| a.int(8), REFUSED),
        ("int of the last vector", |a| a.int(31), REFUSED),
        // AMD CPUs look at the outer stack before they look at the selector.
        (
            "a kernel code segment",
            |a| {
                a.push(0x08)?;
                a.lea(rax, ptr(CODE_ADDR))?;
                a.push(rax)?;
                a.db(&[0x48, 0xCB]) // retfq
            },
            &[PROTECTION, PAGE_FAULT],
        ),
        (
            "a kernel stack segment",
            |a| {
                a.mov(eax, 0x10)?;
                a.mov(ss, ax)
            },
            REFUSED,
        ),
        (
            "a kernel data segment",
            |a| {
                a.mov(eax, 0x10)?;
                a.mov(es, ax)
            },
            REFUSED,
        ),
        (
            "a segment outside the GDT",
            |a| {
                a.mov(eax, 0xFFF8)?;
                a.mov(fs, ax)
            },
            REFUSED,
        ),
        // KVM-PVM looks selectors up in its own GDT, where this one is user data:
        // then it has base 0, as everything in long mode.
        (
            "the task state segment as data",
            |a| {
                a.mov(eax, 0x28)?;
                a.mov(gs, ax)?;
                a.mov(rax, qword_ptr(0).gs())
            },
            &[PROTECTION, PAGE_FAULT],
        ),
        (
            "return to ring 0",
            |a| {
                a.mov(rax, rsp)?;
                a.push(0x10)?;
                a.push(rax)?;
                a.push(0x2)?;
                a.push(0x08)?;
                a.mov(rax, CODE_ADDR)?;
                a.push(rax)?;
                a.iretq()
            },
            REFUSED,
        ),
    ]);
}

/// KVM answers hypercalls of its own at CPL 3 with `-EPERM`, or there are none.
#[test]
fn a_hypercall_to_kvm_is_refused() {
    let Some(kvm) = kvm() else { return };
    let ways: [Write; 2] = [|a| a.vmcall(), |a| a.vmmcall()];
    for number in [0, 1, 5, 11, 0x4000_0000, 0x1708_8300, u64::MAX] {
        for write in ways {
            let code = assemble(|a| {
                a.mov(rax, number)?;
                write(a)?;
                a.neg(rax)?;
                a.mov(rdi, rax)?;
                a.out(i32::from(Hypercall::Exit.port()), al)
            });
            let end = run_code(&kvm, &code).end;
            let refused = matches!(end, End::Exited(1) | End::Fault(_));
            assert!(refused, "{number:#x}: {end:?}");
        }
    }
}

#[test]
fn what_a_guest_does_to_itself_is_its_own_fault() {
    all_are_stopped(&[
        (
            "divide by zero",
            |a| {
                a.xor(ecx, ecx)?;
                a.div(ecx)
            },
            &[DIVIDE],
        ),
        ("ud2", |a| a.ud2(), &[INVALID_OPCODE]),
        ("int3", |a| a.int3(), &[BREAKPOINT]),
        ("int1", |a| a.int1(), &[1]),
        (
            "single step",
            |a| {
                a.push(0x102)?;
                a.popfq()?;
                a.nop()
            },
            &[1],
        ),
        (
            "unaligned SSE",
            |a| a.movaps(xmm0, xmmword_ptr(rsp - 9)),
            &[PROTECTION],
        ),
        (
            "no stack at a fault",
            |a| {
                a.xor(rsp, rsp)?;
                a.ud2()
            },
            &[INVALID_OPCODE],
        ),
        (
            "a non-canonical stack",
            |a| {
                a.mov(rsp, 0x8000_0000_0000_0000_u64)?;
                a.push(rax)
            },
            &[12, PROTECTION],
        ),
        (
            "direction flag and odd registers at a fault",
            |a| {
                a.std()?;
                a.mov(rbp, u64::MAX)?;
                a.ud2()
            },
            &[INVALID_OPCODE],
        ),
        (
            "an instruction across the end of the text",
            |a| a.jmp(CODE_ADDR + PAGE - 1),
            &[PAGE_FAULT],
        ),
    ]);
}

#[test]
fn every_port_outside_the_list_is_closed() {
    let Some(kvm) = kvm() else { return };
    let open: Vec<u16> = Hypercall::ALL.iter().map(|call| call.port()).collect();
    let odd = [
        0x100, 0x1F0, 0x2F8, 0x32F, 0x330, 0x3F8, 0x510, 0xCF8, 0xCFC, 0x7FFF, 0x8000, 0xFFFF,
    ];
    for port in (0..0x100).chain(odd).filter(|port| !open.contains(port)) {
        let code = assemble(|a| {
            a.mov(dx, i32::from(port))?;
            a.out(dx, al)?;
            exit(a, 99)
        });
        let end = run_code(&kvm, &code).end;
        let stopped = matches!(
            end,
            End::Fault(Cause::Exception(Exception {
                vector: PROTECTION,
                ..
            }))
        );
        assert!(stopped, "port {port:#x}: {end:?}");
    }
}

#[test]
fn every_width_and_direction_at_every_port_near_the_list_is_refused() {
    let Some(kvm) = kvm() else { return };
    let ways: [(&str, Write); 8] = [
        ("out 16", |a| a.out(dx, ax)),
        ("out 32", |a| a.out(dx, eax)),
        ("in 8", |a| a.in_(al, dx)),
        ("in 16", |a| a.in_(ax, dx)),
        ("in 32", |a| a.in_(eax, dx)),
        ("outsd", |a| a.outsd()),
        ("insb", |a| a.insb()),
        ("rep insb", |a| a.rep().insb()),
    ];
    for port in 0xDC..=0xF4 {
        for (name, write) in ways {
            let code = assemble(|a| {
                a.mov(dx, port)?;
                a.mov(rsi, DATA)?;
                a.mov(rdi, DATA)?;
                a.mov(ecx, 16)?;
                write(a)?;
                exit(a, 99)
            });
            let elf = ElfBuilder::guest(&code).data(DATA, &[0; 64]).build();
            let end = run(&kvm, elf, &BootConfig::default()).end;
            assert!(
                matches!(end, End::Fault(_)),
                "{name} at port {port:#x}: {end:?}"
            );
        }
    }
}

/// Lengths around nothing, a page and the end of numbers, at, across and beyond
/// every boundary of the guest's memory.
#[test]
fn a_pointer_is_good_when_all_its_bytes_are_the_guests() {
    let Some(kvm) = kvm() else { return };
    let template = |code: &[u8]| {
        ElfBuilder::guest(code)
            .data(DATA, &[0; 64])
            .segment(RODATA, R | W, &[1; 64], 3 * PAGE)
            .build()
    };
    let probe = template(&assemble(|a| exit(a, 0)));
    let image = Image::parse(probe).unwrap();
    let machine = Machine::boot(&kvm, &image, &BootConfig::default(), Vec::new()).unwrap();
    // A fixed image lies the same way every time, whatever its code is.
    let readable: Vec<(u64, u64)> = machine
        .layout()
        .mappings
        .iter()
        .filter(|m| m.addr != machine.layout().system.addr)
        .filter(|m| m.addr != machine.layout().fault_stack.addr)
        .map(|m| (m.addr, m.end()))
        .collect();
    drop(machine);
    let good = |addr: u64, len: u64| {
        if len == 0 {
            return true;
        }
        let Some(end) = addr.checked_add(len) else {
            return false;
        };
        let mut at = addr;
        while at < end {
            match readable
                .iter()
                .find(|(start, stop)| (*start..*stop).contains(&at))
            {
                Some((_, stop)) => at = *stop,
                None => return false,
            }
        }
        true
    };

    let mut pointers = Vec::new();
    for &(start, end) in &readable {
        for at in [start - 1, start, end - 1, end] {
            pointers.extend([0, 1, 2, PAGE, u64::MAX].map(|len| (at, len)));
        }
        pointers.push((start, end - start));
        pointers.push((start, end - start + 1));
    }
    for addr in [
        0,
        1,
        PAGE,
        1 << 46,
        1 << 47,
        0x8000_0000_0000_0000,
        u64::MAX,
    ] {
        pointers.extend([0, 1, 2, PAGE, 1 << 63, u64::MAX].map(|len| (addr, len)));
    }
    assert!(pointers.len() > 100);
    for (addr, len) in pointers {
        let code = assemble(|a| {
            call(a, Hypercall::ConsoleWrite, addr, len)?;
            exit(a, 0)
        });
        let run = run(&kvm, template(&code), &BootConfig::default());
        if good(addr, len) {
            assert_eq!(run.end, End::Exited(0), "{addr:#x}+{len:#x}");
            assert_eq!(run.console.len() as u64, len.min(4096));
        } else {
            let fault = End::Fault(Cause::BadPointer(UserSlice { addr, len }));
            assert_eq!(run.end, fault, "{addr:#x}+{len:#x}");
        }
    }
}

/// Where the CPU tells descriptor-table addresses to CPL 3, they are the host's
/// pages, which cannot be read; where it has UMIP, it does not tell.
#[test]
fn descriptor_tables_cannot_be_read_where_they_are_told() {
    let Some(kvm) = kvm() else { return };
    let reads: [(&str, Write); 2] = [
        ("sgdt", |a| a.sgdt(fword_ptr(DATA))),
        ("sidt", |a| a.sidt(fword_ptr(DATA))),
    ];
    for (name, write) in reads {
        let code = assemble(|a| {
            write(a)?;
            a.mov(rax, qword_ptr(DATA + 2))?;
            a.mov(rax, qword_ptr(rax))?;
            exit(a, 99)
        });
        let elf = ElfBuilder::guest(&code).data(DATA, &[0; 64]).build();
        match run(&kvm, elf, &BootConfig::default()).end {
            End::Fault(Cause::Exception(Exception {
                vector: PAGE_FAULT,
                cr2: missed,
                ..
            })) => {
                assert!(
                    missed.is_some_and(|addr| addr > 0xFFFF),
                    "{name}: {missed:x?}"
                );
            }
            End::Fault(Cause::Exception(Exception { vector, .. })) => {
                assert_eq!(vector, PROTECTION, "{name}");
            }
            end => panic!("{name}: {end:?}"),
        }
    }
}

#[test]
fn a_hundred_faults_leave_nothing_behind() {
    let Some(kvm) = kvm() else { return };
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let crash = Image::parse(ElfBuilder::guest(&assemble(|a| a.ud2())).build()).unwrap();
    let before = fds();
    for _ in 0..100 {
        let machine = Machine::boot(&kvm, &crash, &BootConfig::default(), Vec::new()).unwrap();
        assert!(matches!(run_machine(machine).end, End::Fault(_)));
    }
    // Tests beside this one open some too, but never a hundred.
    assert!(
        fds() < before + 100,
        "{before} file descriptors before, {} after",
        fds()
    );
}
