//! Standard output as a guest's console: bounded, and never waited for.
//!
//! A write happens only when the file polls writable, and is at most
//! [`CONSOLE_WRITE_MAX`] = `PIPE_BUF` bytes, which a pipe then takes without
//! blocking. Terminals and sockets make no such promise: they are opened anew
//! as non-blocking, which leaves other users of the file as they are.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{MsgFlags, send};
use wharf_abi::hypercall::CONSOLE_WRITE_MAX;

use super::{RunError, refused};

const _: () = assert!(CONSOLE_WRITE_MAX == 4096, "PIPE_BUF, on Linux");

/// Where a guest's console output goes.
pub(super) struct Console {
    file: File,
    socket: bool,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// So many bytes are out.
    Bytes(u64),
    /// None can be taken now.
    Later,
    /// None will ever be taken.
    Closed,
}

impl Console {
    /// The console on standard output.
    pub(super) fn stdout() -> Result<Self, RunError> {
        let stdout: OwnedFd = io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| refused("standard output")(errno(&e)))?;
        Ok(Self::on(stdout))
    }

    fn on(fd: OwnedFd) -> Self {
        let file = File::from(fd);
        let kind = file.metadata().map(|metadata| metadata.file_type()).ok();
        let socket = kind.as_ref().is_some_and(FileTypeExt::is_socket);
        if kind.as_ref().is_some_and(FileTypeExt::is_char_device) {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let anew = OpenOptions::new()
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
                .open(path);
            if let Ok(file) = anew {
                return Self { file, socket };
            }
        }
        Self { file, socket }
    }

    /// What to poll before a write.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Writes what the file takes now.
    pub(super) fn write(&self, bytes: &[u8]) -> Written {
        if bytes.is_empty() {
            return Written::Bytes(0);
        }
        let result = if self.socket {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            send(self.file.as_raw_fd(), bytes, flags).map_err(io::Error::from)
        } else {
            (&self.file).write(bytes)
        };
        match result {
            Ok(len) => Written::Bytes(len.try_into().unwrap_or(0)),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Written::Later
            }
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Written::Closed,
            Err(e) => {
                // A full disk must not stop the task: what it says is lost.
                log::warn!("console output lost: {e}");
                Written::Bytes(bytes.len().try_into().unwrap_or(0))
            }
        }
    }
}

fn errno(error: &io::Error) -> nix::Error {
    nix::Error::from_raw(error.raw_os_error().unwrap_or(0))
}
