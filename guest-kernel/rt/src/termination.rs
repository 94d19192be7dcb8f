//! How a main function's result becomes an exit status.

use core::convert::Infallible;
use core::fmt;

use crate::println;

/// A guest's exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExitCode(u8);

impl ExitCode {
    /// 0: all went well.
    pub const SUCCESS: Self = Self(0);
    /// 1: something did not.
    pub const FAILURE: Self = Self(1);
    /// 101: the guest panicked, or the runtime could not start it.
    pub const PANIC: Self = Self(101);

    /// Returns the status as a number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl From<u8> for ExitCode {
    fn from(status: u8) -> Self {
        Self(status)
    }
}

/// What a main function can return.
#[diagnostic::on_unimplemented(
    message = "a main function cannot return `{Self}`",
    note = "it can return `()`, `u8`, `wharf::ExitCode`, or a `Result` of one of these"
)]
pub trait Termination {
    /// Says on the console what there is to say, and returns the exit status.
    fn report(self) -> ExitCode;
}

impl Termination for () {
    fn report(self) -> ExitCode {
        ExitCode::SUCCESS
    }
}

impl Termination for ExitCode {
    fn report(self) -> ExitCode {
        self
    }
}

impl Termination for u8 {
    fn report(self) -> ExitCode {
        ExitCode(self)
    }
}

impl Termination for Infallible {
    fn report(self) -> ExitCode {
        match self {}
    }
}

impl<T: Termination, E: fmt::Debug> Termination for Result<T, E> {
    fn report(self) -> ExitCode {
        match self {
            Ok(value) => value.report(),
            Err(error) => {
                println!("Error: {error:?}");
                ExitCode::FAILURE
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ExitCode, Termination};

    #[test]
    fn values_become_statuses() {
        assert_eq!(().report(), ExitCode::SUCCESS);
        assert_eq!(7_u8.report().get(), 7);
        assert_eq!(Ok::<_, ()>(ExitCode::from(9)).report().get(), 9);
    }
}
