//! Which CPU guests are shown: KVM's, without what is of use to a host only.
//!
//! A guest could not use any of it, since the registers that turn it on are not its own.
//! But where KVM offers to nest it is said to be there, and a guest that believes that
//! and tries is a guest that KVM has to be right about.

use kvm_bindings::CpuId;

/// Bits that are clear to every guest: leaf, and what is kept of EAX, EBX, ECX and EDX
/// (SDM vol. 2, CPUID; APM vol. 3 §E.4).
const KEPT: [(u32, [u32; 4]); 5] = [
    // VMX and SMX.
    (1, [ALL, ALL, !(1 << 5 | 1 << 6), ALL]),
    // SGX and its launch configuration.
    (7, [ALL, !(1 << 2), !(1 << 30), ALL]),
    // What SGX has.
    (0x12, [0; 4]),
    // SVM.
    (0x8000_0001, [ALL, ALL, !(1 << 2), ALL]),
    // What SVM has.
    (0x8000_000A, [0; 4]),
];

const ALL: u32 = u32::MAX;

/// Takes out of what KVM supports what no guest is shown.
pub(crate) fn mask(cpuid: &mut CpuId) {
    for entry in cpuid.as_mut_slice() {
        let leaf = entry.function;
        for (_, [eax, ebx, ecx, edx]) in KEPT.iter().filter(|(it, _)| *it == leaf) {
            entry.eax &= eax;
            entry.ebx &= ebx;
            entry.ecx &= ecx;
            entry.edx &= edx;
        }
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{CpuId, kvm_cpuid_entry2};

    use super::mask;

    #[test]
    fn no_guest_is_shown_what_makes_a_host() {
        let all = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        let leaves = [
            (0, 0),
            (1, 0),
            (7, 0),
            (0x12, 0),
            (0x12, 1),
            (0x8000_0001, 0),
            (0x8000_000A, 0),
        ];
        let mut cpuid = CpuId::from_entries(&leaves.map(|(leaf, n)| all(leaf, n))).unwrap();
        mask(&mut cpuid);
        let missing: Vec<[u32; 4]> = cpuid
            .as_slice()
            .iter()
            .map(|it| [!it.eax, !it.ebx, !it.ecx, !it.edx])
            .collect();
        let every = [u32::MAX; 4];
        assert_eq!(
            missing,
            [
                [0; 4],
                [0, 0, 0x60, 0],
                [0, 4, 0x4000_0000, 0],
                every,
                every,
                [0, 0, 4, 0],
                every
            ]
        );
    }
}
