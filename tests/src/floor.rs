//! The least that any KVM host must do: one VM, one memory slot, one vCPU at
//! CPL 3 in long mode, one `out`. Nothing is checked, loaded or printed.

#![expect(unsafe_code, reason = "a bare KVM program, to be compared with")]

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const MEMORY: usize = 2 << 20;
const PORT: u16 = 0xE0;

const TABLES: u64 = 0x1000;
const TSS: u64 = 0x6000;
const CODE: u64 = 0x7000;

/// A guest that has run. Dropped, it is closed.
#[derive(Debug)]
pub struct Bare {
    _vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemoryMmap,
}

/// Makes a guest and runs it up to its first exit.
///
/// # Errors
///
/// When KVM is not usable, or the guest leaves in another way.
pub fn first_run(kvm: &Kvm) -> Result<Bare, Box<dyn std::error::Error>> {
    let vm = kvm.create_vm()?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)])?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
    };
    // SAFETY: `memory` outlives the VM's last run, which is below, and the VM itself.
    unsafe { vm.set_user_memory_region(region)? };

    // Four levels of tables, identity for the code page; user, present, writable.
    for level in 0..3 {
        let at = TABLES + level * 0x1000;
        memory.write_obj(at + 0x1000 + 0x27, GuestAddress(at))?;
    }
    memory.write_obj(CODE + 0x65, GuestAddress(TABLES + 0x3000 + 7 * 8))?;
    memory.write_obj(
        TSS + (1 << 63) + 0x61,
        GuestAddress(TABLES + 0x3000 + 6 * 8),
    )?;
    // I/O map base 0x68, all of it zero: every port below 0x100 is open.
    memory.write_obj(0x68_u16, GuestAddress(TSS + 0x66))?;
    // out PORT, al
    memory.write_slice(&[0xE6, PORT.to_le_bytes()[0]], GuestAddress(CODE))?;

    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    let segment = |selector, type_, l| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        db: 1 - l,
        s: 1,
        l,
        g: 1,
        ..Default::default()
    };
    sregs.cs = segment(0x23, 0xB, 1);
    let data = segment(0x1B, 0x3, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: TSS,
        limit: 0x68 + 32,
        selector: 0x28,
        type_: 0xB,
        present: 1,
        ..Default::default()
    };
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = 0x8005_0033;
    sregs.cr3 = TABLES;
    sregs.cr4 = 0x620;
    sregs.efer = 0xD00;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: CODE,
        rflags: 0x202,
        ..Default::default()
    })?;
    if !matches!(vcpu.run()?, VcpuExit::IoOut(PORT, [_])) {
        return Err("the guest did something else".into());
    }
    Ok(Bare {
        _vcpu: vcpu,
        _vm: vm,
        _memory: memory,
    })
}
