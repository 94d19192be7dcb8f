//! Which contract an image was built against.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of the guest contract, written by an image into its manifest and by
/// the host into the boot page.
///
/// | version | what it added |
/// |---|---|
/// | 1.0 | boot page, exit, wait, console write |
/// | 1.1 | devices ([`crate::device`]), kick, the interest bits of devices |
/// | 1.2 | streams ([`crate::stream`]), frames ([`crate::net`]), entropy, console input |
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default,
)]
#[repr(C)]
pub struct AbiVersion {
    /// Incompatible steps.
    pub major: u16,
    /// Additions: a host of minor version *n* runs images of minor 0 to *n*.
    pub minor: u16,
}

impl AbiVersion {
    /// The version that this crate describes.
    pub const CURRENT: Self = Self { major: 1, minor: 3 };

    /// Says whether a host of this version can run an image of version `image`.
    #[must_use]
    pub const fn runs(self, image: Self) -> bool {
        self.major == image.major && image.minor <= self.minor
    }
}

impl fmt::Display for AbiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::AbiVersion;

    #[test]
    fn a_host_runs_its_own_and_older_minor_versions_only() {
        let host = AbiVersion { major: 2, minor: 3 };
        let runs = |major, minor| host.runs(AbiVersion { major, minor });
        assert!(runs(2, 0) && runs(2, 3));
        assert!(!runs(2, 4) && !runs(1, 3) && !runs(3, 0));
    }
}
