//! What can go wrong that is not the guest's doing.

use std::io;

use crate::layout::LayoutError;
use crate::memory::Gpa;

/// A machine could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` did not open.
    #[error("cannot open /dev/kvm (try `wharf doctor`)")]
    Open(#[source] kvm_ioctls::Error),
    /// A KVM ioctl failed.
    #[error("KVM could not {what}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// The ioctl's errno.
        source: kvm_ioctls::Error,
    },
    /// KVM refused to enter the guest.
    #[error("KVM could not enter the guest: hardware reason {reason:#x}")]
    Entry {
        /// `hardware_entry_failure_reason` (KVM api.rst §5).
        reason: u64,
    },
    /// KVM lacks something that every guest needs.
    #[error("this KVM lacks {0} (try `wharf doctor`)")]
    Missing(&'static str),
    /// A guest's TSC cannot be made the host's.
    #[error(
        "this KVM does not take KVM_VCPU_TSC_OFFSET, which came with Linux 5.16 (try `wharf doctor`)"
    )]
    TscOffset(#[source] io::Error),
    /// The image, its arguments and the memory do not go together.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Guest memory could not be had.
    #[error("cannot reserve {len} bytes of guest memory")]
    Memory {
        /// Bytes asked for.
        len: u64,
        /// Why not.
        source: io::Error,
    },
    /// The host addressed guest memory that does not exist: a defect of wharf's.
    #[error("guest memory has no {len} bytes at {at:#x}")]
    Outside {
        /// Guest-physical address.
        at: u64,
        /// Bytes.
        len: usize,
    },
    /// State for a guest whose contract knows of none.
    #[error("a guest of Solo5's cannot be given the state of the one before it")]
    NoHeir,
    /// wharf contradicts itself.
    #[error("a defect of wharf's: {0}")]
    Defect(&'static str),
    /// No randomness for the guest's seed and addresses.
    #[error("no random numbers from the kernel")]
    Entropy(#[source] getrandom::Error),
}

impl Error {
    /// Wraps the error of the ioctl that was to do `what`.
    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { what, source }
    }

    pub(crate) const fn outside(at: Gpa, len: usize) -> Self {
        Self::Outside { at: at.0, len }
    }
}
