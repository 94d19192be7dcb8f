//! Standard output as a guest's console: bounded, and never waited for.
//!
//! Pipes and terminals are opened anew as non-blocking, which leaves other users
//! of the file as they are; sockets are asked not to block with each write. Where
//! a pipe cannot be opened anew, a write is at most [`CONSOLE_WRITE_MAX`] =
//! `PIPE_BUF` bytes and happens only when it polls writable, which suffices
//! unless somebody else writes to the same pipe.

use std::cell::RefCell;
use std::fmt;
use std::fs::{File, FileType, OpenOptions};
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
    lost: RefCell<Option<Lost>>,
}

/// Console output that nobody will see.
#[derive(Debug)]
pub struct Lost {
    bytes: u64,
    error: io::Error,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, error } = self;
        write!(f, "{bytes} bytes of console output were lost: {error}")
    }
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
        let waits = |kind: &FileType| kind.is_char_device() || kind.is_fifo();
        if kind.as_ref().is_some_and(waits) {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let anew = OpenOptions::new()
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
                .open(path);
            if let Ok(file) = anew {
                return Self::of(file, socket);
            }
        }
        Self::of(file, socket)
    }

    fn of(file: File, socket: bool) -> Self {
        Self {
            file,
            socket,
            lost: RefCell::new(None),
        }
    }

    /// What was lost so far, if anything was.
    pub(super) fn into_lost(self) -> Option<Lost> {
        self.lost.into_inner()
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
            Ok(len) => Written::Bytes(len.try_into().unwrap_or(u64::MAX)),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Written::Later
            }
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Written::Closed,
            Err(e) => {
                // A full disk must not stop the task: what it says is lost. Said
                // at the end, and once: a guest can make this happen at will.
                let mut lost = self.lost.borrow_mut();
                let lost = lost.get_or_insert(Lost { bytes: 0, error: e });
                let len = bytes.len().try_into().unwrap_or(u64::MAX);
                lost.bytes = lost.bytes.saturating_add(len);
                Written::Bytes(bytes.len().try_into().unwrap_or(u64::MAX))
            }
        }
    }
}

fn errno(error: &io::Error) -> nix::Error {
    error
        .raw_os_error()
        .map_or(nix::Error::EIO, nix::Error::from_raw)
}
