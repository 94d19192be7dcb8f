//! Why the control socket could not be served.

use std::io;
use std::path::PathBuf;

use super::socket::PATH_MAX;

/// The control socket could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The kernel has no room for the path.
    #[error(
        "the socket's path {} has {length} bytes, and the kernel takes {PATH_MAX}: \
         choose a shorter one with --socket", path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Another wharf serves there, or is about to.
    #[error(
        "{} serves {} already: end it with `wharf down`, or choose another socket with --socket",
        holder(*pid), path.display()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The process that holds it, when it has said so.
        pid: Option<u32>,
    },
    /// There is a file of another kind, which is not ours to remove.
    #[error("{} is there and no socket: move it, or choose another with --socket", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The lock beside the socket cannot be had.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The server's thread cannot be started.
    #[error("cannot start the control socket's thread")]
    Thread(#[source] io::Error),
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another wharf".to_owned(),
    }
}
