//! What this machine's KVM can do, for `wharf doctor`.

use kvm_ioctls::{Cap, Kvm};

use crate::Error;
use crate::vcpu::SYNC_REGS_NEEDED;

/// A capability and whether KVM has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The name in KVM's api.rst.
    pub name: &'static str,
    /// What wharf does with it.
    pub purpose: &'static str,
    /// Whether guests cannot run without it.
    pub required: bool,
    /// Whether it is there.
    pub present: bool,
}

/// What `/dev/kvm` says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// 12 since Linux 2.6.22.
    pub api_version: i32,
    /// Those that matter here.
    pub capabilities: Vec<Capability>,
    /// Most vCPUs of one VM.
    pub max_vcpus: usize,
}

/// Opens `/dev/kvm` and asks.
///
/// # Errors
///
/// When it does not open.
pub fn probe() -> Result<Probe, Error> {
    let kvm = Kvm::new().map_err(Error::Open)?;
    let has = |cap| kvm.check_extension(cap);
    let capability = |name, purpose, required, present| Capability {
        name,
        purpose,
        required,
        present,
    };
    let sync_regs = kvm.check_extension_int(Cap::SyncRegs) & SYNC_REGS_NEEDED != 0;
    let capabilities = vec![
        capability(
            "KVM_CAP_USER_MEMORY",
            "guest memory",
            true,
            has(Cap::UserMemory),
        ),
        capability(
            "KVM_CAP_EXT_CPUID",
            "the guest's CPUID",
            true,
            has(Cap::ExtCpuid),
        ),
        capability(
            "KVM_CAP_SYNC_REGS",
            "hypercall arguments without an ioctl",
            true,
            sync_regs,
        ),
        capability(
            "KVM_CAP_IMMEDIATE_EXIT",
            "ending a guest's run at once",
            true,
            has(Cap::ImmediateExit),
        ),
        capability(
            "KVM_CAP_GET_TSC_KHZ",
            "time without an exit",
            true,
            has(Cap::GetTscKhz),
        ),
        capability("KVM_CAP_XSAVE", "snapshots", false, has(Cap::Xsave)),
    ];
    Ok(Probe {
        api_version: kvm.get_api_version(),
        capabilities,
        max_vcpus: kvm.get_max_vcpus(),
    })
}
