//! What the operator types, or pipes into `wharf run`.

use core::convert::Infallible;
use core::fmt;

use embedded_io_async::{ErrorType, Read};
use wharf_abi::DeviceKind;

use crate::device::OpenError;
use crate::source::Source;

/// The console's input. A task in the background has none: it ends at once.
pub struct Input(&'static Source);

/// Opens the console device that the manifest declares by this name.
///
/// # Errors
///
/// When there is none, or it is open already.
pub fn open(name: &str) -> Result<Input, OpenError> {
    Source::open(DeviceKind::Console, name).map(Input)
}

impl ErrorType for Input {
    type Error = Infallible;
}

impl Read for Input {
    async fn read(&mut self, into: &mut [u8]) -> Result<usize, Infallible> {
        Ok(self.0.read(into).await)
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Input")
    }
}
