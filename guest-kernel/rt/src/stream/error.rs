//! What can go wrong with a stream.

use core::fmt;

use embedded_io::ErrorKind;
use wharf_abi::stream::Refusal;

use crate::device::OpenError;

/// Why a stream or a listener did not do what was asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no device to be had: name one in `#[wharf::main(stream = ["…"])]`.
    Open(OpenError),
    /// Somebody of this guest listens on that port already.
    AddrInUse,
    /// No port: there is none with the number 0.
    InvalidPort,
    /// The connection was not made.
    Refused(Refusal),
    /// The peer ended the connection before its time.
    ConnectionReset,
    /// Nobody reads what is written: the peer, or this guest itself, said so.
    BrokenPipe,
    /// The heap is full.
    OutOfMemory,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open(error) => return error.fmt(f),
            Self::AddrInUse => "the port has a listener already",
            Self::InvalidPort => "no port has the number 0",
            Self::Refused(Refusal::Denied) => "the host does not allow that connection",
            Self::Refused(Refusal::Refused) => "nobody listens there",
            Self::Refused(Refusal::Unreachable) => "there is no way there",
            Self::Refused(Refusal::TimedOut) => "nobody answered",
            Self::Refused(Refusal::TooMany) => "too many connections",
            Self::Refused(Refusal::Invalid) => "no such address",
            Self::ConnectionReset => "connection reset",
            Self::BrokenPipe => "broken pipe",
            Self::OutOfMemory => "out of memory",
        })
    }
}

impl core::error::Error for Error {}

impl embedded_io::Error for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Open(OpenError::NotDeclared) => ErrorKind::NotFound,
            Self::Open(_) => ErrorKind::Unsupported,
            Self::AddrInUse => ErrorKind::AddrInUse,
            Self::InvalidPort | Self::Refused(Refusal::Invalid) => ErrorKind::InvalidInput,
            Self::Refused(Refusal::Denied) => ErrorKind::PermissionDenied,
            Self::Refused(Refusal::Unreachable) => ErrorKind::AddrNotAvailable,
            Self::Refused(Refusal::TimedOut) => ErrorKind::TimedOut,
            Self::Refused(Refusal::Refused | Refusal::TooMany) => ErrorKind::ConnectionRefused,
            Self::ConnectionReset => ErrorKind::ConnectionReset,
            Self::BrokenPipe => ErrorKind::BrokenPipe,
            Self::OutOfMemory => ErrorKind::OutOfMemory,
        }
    }
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}
