//! Random bytes from the host, while the guest runs.
//!
//! [`random`](crate::random) costs no exit and is good enough for keys: this is for
//! who wants the kernel's own bytes.

use core::fmt;

use wharf_abi::DeviceKind;

use crate::device::OpenError;
use crate::source::Source;

/// An entropy device.
#[derive(Clone, Copy)]
pub struct Entropy(&'static Source);

/// The host gave no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoEntropy;

impl fmt::Display for NoEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the host gave no random bytes")
    }
}

impl core::error::Error for NoEntropy {}

/// Opens the entropy device that the manifest declares by this name.
///
/// # Errors
///
/// When there is none, or it is open already.
pub fn open(name: &str) -> Result<Entropy, OpenError> {
    Source::open(DeviceKind::Entropy, name).map(Entropy)
}

impl Entropy {
    /// Fills `bytes`.
    ///
    /// # Errors
    ///
    /// When the host gives none.
    pub async fn fill(&self, mut bytes: &mut [u8]) -> Result<(), NoEntropy> {
        while !bytes.is_empty() {
            let count = self.0.read(bytes).await;
            match core::mem::take(&mut bytes).get_mut(count..) {
                Some(rest) if count > 0 => bytes = rest,
                _ => return Err(NoEntropy),
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy")
    }
}
