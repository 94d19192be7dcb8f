//! Standard input as a guest's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use wharf_machine::Buffers;
use wharf_machine::device::Input;

/// Standard input, of which nothing is read before the guest wants it, and nothing
/// that it does not want: whoever comes afterwards has the rest.
#[derive(Debug)]
pub(super) struct Stdin(io::Stdin);

impl Default for Stdin {
    fn default() -> Self {
        Self(io::stdin())
    }
}

impl Input for Stdin {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn read(&mut self, into: &Buffers<'_>) -> io::Result<usize> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
            Ok(_) => into.read_some(self.0.as_fd()),
            Err(e) => Err(e.into()),
        }
    }
}
