//! The files that a worker waits for: its own signals, and its guests' devices.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use wharf_model::cell::TaskKey;

/// Guests that are told of at a stretch; the others are told of the next time.
const AT_ONCE: usize = 64;

/// The number of the worker's signals among those of guests.
const SIGNALS: u64 = u64::MAX;

/// How long a look may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// No time.
    None,
    /// Until there is something, a signal included.
    Unlimited,
}

/// What a worker watches. A device is told of for as long as it has something to do.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: Epoll,
    /// By a number that is never used again.
    guests: BTreeMap<u64, TaskKey>,
    last: u64,
}

impl Watch {
    pub(super) fn new(signals: BorrowedFd<'_>) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS))?;
        Ok(Self {
            epoll,
            guests: BTreeMap::new(),
            last: 0,
        })
    }

    /// Whether no guest here has a device that could have something to do.
    pub(super) fn is_empty(&self) -> bool {
        self.guests.is_empty()
    }

    /// Whether a guest other than this one has.
    pub(super) fn has_others(&self, key: TaskKey) -> bool {
        self.guests.values().any(|it| *it != key)
    }

    /// Watches the devices of a guest.
    pub(super) fn add<'a>(&mut self, key: TaskKey, fds: impl Iterator<Item = BorrowedFd<'a>>) {
        self.last = self.last.saturating_add(1);
        let number = self.last;
        for fd in fds {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
            match self.epoll.add(fd, event) {
                Ok(()) => {
                    self.guests.insert(number, key);
                }
                Err(e) => log::error!("a guest's device is not watched: epoll: {e}"),
            }
        }
    }

    /// Watches them no more.
    pub(super) fn remove<'a>(&mut self, key: TaskKey, fds: impl Iterator<Item = BorrowedFd<'a>>) {
        for fd in fds {
            // One that could not be added is not there.
            let _ = self.epoll.delete(fd);
        }
        self.guests.retain(|_, it| *it != key);
    }

    /// The guests whose devices have something to do.
    pub(super) fn look(&self, patience: Patience) -> Vec<TaskKey> {
        let mut events = [EpollEvent::empty(); AT_ONCE];
        let timeout = match patience {
            Patience::None => EpollTimeout::ZERO,
            Patience::Unlimited => EpollTimeout::NONE,
        };
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(e) => {
                log::error!("a worker's devices: epoll: {e}");
                0
            }
        };
        let found = events.iter().take(count);
        found
            .filter_map(|event| self.guests.get(&event.data()).copied())
            .collect()
    }
}
