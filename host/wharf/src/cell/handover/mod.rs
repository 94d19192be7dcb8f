//! A cell that goes from one process to another: the host is upgraded, and its guests
//! go on.
//!
//! ```text
//!   old process                            new process
//!     │ starts it, with one end of a socket    │
//!     ├── Hello ──────────────────────────────▶│
//!     │◀───────────────────────────── Hello ───┤  which format it speaks
//!     ├── World: configuration, policies, ────▶│
//!     │          ports                         │  compiles, starts workers
//!     │◀───────────────────────────── Ready ───┤
//!     │ until here it goes on as ever          │
//!     ├── Policies: their state as it is now ─▶│
//!     │◀───────────────────────────── Ready ───┤  both take connections now, each
//!     │                                        │  for the guests that it has
//!     │ of each guest that lives               │
//!     ├── Announce: image, memory ────────────▶│  makes VM and vCPU, all at once
//!     │ for each guest that lives              │
//!     ├── Reserve ────────────────────────────▶│
//!     │◀────────────────────────── Reserved ───┤
//!     │ takes it from its worker ▒             │
//!     ├── Guest: registers, devices, sockets ─▶│
//!     │                          ▒ stands still│  puts it together
//!     │◀───────────────────────────── Taken ───┤  gives it to a worker
//!     │ lets it go                             │
//!     ├── Finish: what the supervisor knows, ─▶│
//!     │           the control socket           │
//!     │◀─────────────────────────── Serving ───┤
//!     ▼ ends
//! ```
//!
//! Until *Serving* everything can be undone, by the same steps the other way: who is told
//! [`Message::GiveBack`] gives each guest that it has taken. What the new process cannot
//! do, it says by [`Message::Refused`] in place of the next answer, and waits to be told
//! so. *Taken* is what counts: a guest whose *Taken* has been sent runs in the new process
//! and nowhere else, and one that the new process keeps silent about is the old one's
//! again, which ends the other first. So no guest ever runs twice. Those that a process
//! has taken are lost with it when it is killed, be it for its silence.
//!
//! The two may be of different versions: messages are JSON, in which a newer process
//! finds what an older one wrote. [`FORMAT`] changes when that does not go any more.

mod link;
mod message;
mod passage;
mod process;

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::text::one_line;

pub(super) use link::{Link, LinkError};
pub(super) use message::{
    CarriedConsole, CarriedEvents, CarriedGuest, CarriedMember, Components, Control, Finish, Lost,
    Message, Next, PortFile, Stranded, World,
};
pub(super) use passage::{
    Broken, Gave, Heard, Images, Reception, Surrendered, Told, announce, give, keep,
};

pub(super) use process::Process;

/// What the two processes speak. A process refuses another that speaks something else.
pub(super) const FORMAT: u32 = 2;

/// How long either waits for the other's next word about a guest. Long: a machine that
/// is busy is no reason to give up.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// How long a new process may take to start and to compile its policies.
pub(super) const START_PATIENCE: Duration = Duration::from_secs(120);

/// The control socket, as it goes from one process to another.
#[derive(Debug)]
pub struct ControlFiles {
    /// Where it is.
    pub path: PathBuf,
    /// The socket that listens.
    pub listener: OwnedFd,
    /// The file whose lock says whose it is.
    pub lock: OwnedFd,
    /// The file that the cell was configured by, for people.
    pub config: Option<String>,
}

/// A control socket that can be handed over.
pub struct ControlSocket {
    /// What another process needs to serve it.
    pub files: ControlFiles,
    /// Says who is accepted here.
    pub accept: Box<dyn Fn(Accepting) + Send>,
}

/// Who is accepted at a control socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepting {
    /// Whoever comes.
    All,
    /// Nobody for a while: who comes waits, for whoever serves then.
    Later,
    /// Nobody any more: it is another process's.
    Never,
}

impl std::fmt::Debug for ControlSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ControlSocket").field(&self.files).finish()
    }
}

impl ControlFiles {
    /// Says in the lock's file that this process has the socket.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn claim(&self) -> io::Result<()> {
        write_holder(&File::from(self.lock.try_clone()?))
    }

    /// The same files once more.
    ///
    /// # Errors
    ///
    /// When this process has no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            path: self.path.clone(),
            listener: self.listener.try_clone()?,
            lock: self.lock.try_clone()?,
            config: self.config.clone(),
        })
    }
}

/// Writes into a control socket's lock who has it.
pub fn write_holder(mut lock: &File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

/// Why a cell did not go over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The other process is gone, silent, or talks nonsense.
    #[error("the other process: {0}")]
    Link(#[from] LinkError),
    /// It says why.
    #[error("the other process refuses: {0}")]
    Refused(String),
    /// It speaks something else.
    #[error("the other process speaks format {theirs} of hand-overs, this one {FORMAT}")]
    Format {
        /// What the other speaks.
        theirs: u32,
    },
    /// It wanted back what it had handed over, and has it.
    #[error("the other process goes on itself")]
    GivenBack,
    /// It is not the parent of this one, which so could not be ended with it.
    #[error(
        "this process was not started by the one that is to be taken over: a program that \
             starts a host has to become it (`exec`)"
    )]
    NotParent,
    /// It has ended.
    #[error("the other process has ended ({0}): is it a wharf-host, and has it what it needs?")]
    Ended(ExitStatus),
    /// The cell has ended while it was handed over.
    #[error("the cell has ended")]
    CellEnded,
    /// It said something out of turn.
    #[error("the other process said something else than {0}")]
    Unexpected(&'static str),
    /// What it handed over cannot be gone on with.
    #[error("{0}")]
    Unfit(String),
}

impl HandoverError {
    /// Whether the other process is not to be talked to any more.
    pub(super) const fn is_end(&self) -> bool {
        match self {
            Self::Link(error) => error.is_end(),
            Self::Ended(_) => true,
            _ => false,
        }
    }

    /// Whether it has closed its end.
    const fn is_closed(&self) -> bool {
        matches!(self, Self::Link(LinkError::Closed))
    }

    /// What was handed over cannot be gone on with, for this reason.
    pub(super) fn unfit(error: &dyn std::error::Error) -> Self {
        Self::Unfit(one_line(error))
    }
}
