//! A tap interface as a guest's wire: the kernel's network is at the other end.
//!
//! What has arrived for the guest waits in the kernel, which keeps as many frames as the
//! interface's `txqueuelen` says; what it drops is counted, too ([`FrameDrops`]). Of an
//! interface that is down, or was taken away, nothing comes and nothing gets there: its
//! guest goes on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde_json::Value;
use wharf_abi::net::FRAME_MAX;
use wharf_machine::Tun;
use wharf_machine::device::{Mac, Way, Wire};
use wharf_machine::handover::Luggage;
use wharf_model::switch::source;

use super::{CarriedWire, FrameDrops, SWITCH};

/// Most bytes of an interface's name.
const NAME_MAX: usize = 15;

/// Frames that are thrown away at most when the guest begins to listen: more than a
/// kernel keeps, unless it was told to keep more.
const STALE_MAX: usize = 4096;

/// Why a tap interface cannot be had. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel has no such driver.
    #[error("there is no /dev/net/tun: load the kernel's module with `modprobe tun`")]
    NoDriver,
    /// This user may not ask the driver for anything.
    #[error("cannot open /dev/net/tun: allow this user to read and write it")]
    Driver(#[source] io::Error),
    /// There is no such interface.
    #[error(
        "there is no interface {interface}: make it with `ip tuntap add dev {interface} mode tap`, \
         or name another"
    )]
    Missing {
        /// Its name.
        interface: String,
    },
    /// This user may not have it.
    #[error(
        "tap interface {interface} is another user's: make it with `ip tuntap add dev {interface} \
         mode tap user USER`, or name another"
    )]
    Denied {
        /// Its name.
        interface: String,
    },
    /// Somebody has it.
    #[error("tap interface {interface} is in use: end who uses it, or name another")]
    InUse {
        /// Its name.
        interface: String,
    },
    /// It is of another kind.
    #[error(
        "{interface} is no tap interface, or one of several queues: name one that `ip tuntap add \
         dev NAME mode tap` made"
    )]
    NoTap {
        /// Its name.
        interface: String,
    },
    /// Nothing can come or go.
    #[error("tap interface {interface} is down: bring it up with `ip link set {interface} up`")]
    Down {
        /// Its name.
        interface: String,
    },
    /// The kernel refused it, or had nothing left for it.
    #[error("the kernel refused tap interface {interface}")]
    System {
        /// Its name.
        interface: String,
        /// Why.
        source: io::Error,
    },
}

/// A tap interface. Dropped, it is free for others.
#[derive(Debug)]
pub struct Tap {
    tun: Tun,
    /// Has the interface in it, from when the guest listens: tells of each arrival once.
    epoll: Epoll,
    interface: String,
    mac: Mac,
    /// As the interface had it when it was taken.
    mtu: u16,
    /// Whether frames may have arrived that were not taken.
    has_news: bool,
    /// Whether the guest listens.
    is_open: bool,
    is_gone: bool,
    drops: Arc<FrameDrops>,
}

/// Says whether an interface can be called so, and its name be written anywhere: 1 to 15
/// letters, digits and signs of ASCII but `/`, `:` and `%`, as Linux has it, and not
/// what a router knows the host's switch as.
#[must_use]
pub fn is_tap_name(name: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(is_good)
        && !matches!(name, "." | ".." | SWITCH)
}

impl Tap {
    /// Takes a tap interface that is there. The guest's address on it is `mac`; what goes
    /// nowhere of its frames is counted in `drops`.
    ///
    /// # Errors
    ///
    /// [`TapError`].
    pub fn open(interface: &str, mac: Mac, drops: Arc<FrameDrops>) -> Result<Self, TapError> {
        let tun = attach(interface)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        let epoll = epoll.map_err(|e| refused(interface, e.into()))?;
        let mtu = Tun::mtu(interface).map_err(|e| refused(interface, e))?;
        drops.begin(interface);
        Ok(Self {
            tun,
            epoll,
            interface: interface.to_owned(),
            mac,
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            has_news: false,
            is_open: false,
            is_gone: false,
            drops,
        })
    }

    /// Goes on with one that another process had, with what has arrived there.
    ///
    /// # Errors
    ///
    /// When the kernel has no descriptors left.
    pub(super) fn go_on(
        tun: Tun,
        interface: String,
        (mac, mtu): (Mac, u16),
        (is_open, is_gone): (bool, bool),
        drops: Arc<FrameDrops>,
    ) -> Result<Self, TapError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        let epoll = epoll.map_err(|e| refused(&interface, e.into()))?;
        drops.begin(&interface);
        let tap = Self {
            tun,
            epoll,
            interface,
            mac,
            mtu,
            // What has arrived is told of anew, but of one that is gone.
            has_news: is_open,
            is_open,
            is_gone,
            drops,
        };
        if is_open {
            tap.listen();
        }
        Ok(tap)
    }

    /// Has the interface watched.
    fn listen(&self) {
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        if let Err(e) = self.epoll.add(&self.tun, event) {
            log::error!(
                "tap interface {} is not watched: epoll: {e}",
                self.interface
            );
        }
    }

    /// Says whether a tap interface could be had now.
    ///
    /// # Errors
    ///
    /// [`TapError`].
    pub fn check(interface: &str) -> Result<(), TapError> {
        attach(interface).map(drop)
    }

    /// Notes that the interface is no more, if that is what the error says.
    fn look_at(&mut self, error: &io::Error) {
        let is_gone = error.raw_os_error() == Some(nix::libc::EBADFD);
        if is_gone && !self.is_gone {
            self.is_gone = true;
            log::warn!(
                "tap interface {} is gone: its guest has no wire until the task is restarted",
                self.interface
            );
        }
    }
}

impl Wire for Tap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    fn mac(&self) -> Mac {
        self.mac
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn open(&mut self) {
        // Who had no driver listened to nothing, as at the switch.
        let mut frame = [0; 1];
        let stale = std::iter::repeat_with(|| self.tun.receive(&mut frame));
        stale
            .take(STALE_MAX)
            .take_while(Result::is_ok)
            .for_each(drop);
        self.is_open = true;
        self.listen();
    }

    fn has_looked(&mut self) {
        let mut events = [EpollEvent::empty()];
        let seen = self.epoll.wait(&mut events, EpollTimeout::ZERO);
        self.has_news |= seen.is_ok_and(|count| count > 0);
    }

    fn receive(&mut self) -> Option<Arc<[u8]>> {
        if !self.has_news {
            return None;
        }
        // One byte more, by which a frame that is too long is told.
        let mut frame = [0; FRAME_MAX + 1];
        match self.tun.receive(&mut frame) {
            Ok(len) => frame.get(..len).map(Arc::from),
            Err(e) => {
                self.has_news = false;
                self.look_at(&e);
                None
            }
        }
    }

    fn send(&mut self, frame: &[u8]) {
        if source(frame) != Some(self.mac) {
            self.was_dropped(Way::FromGuest);
        } else if let Err(e) = self.tun.send(frame) {
            self.was_dropped(Way::FromGuest);
            self.look_at(&e);
        }
    }

    fn was_dropped(&mut self, way: Way) {
        self.drops.count(way);
    }

    fn carry(&mut self, luggage: &mut Luggage) -> io::Result<Value> {
        let carried = CarriedWire::Tap {
            tun: luggage.put_file(self.tun.share()?),
            interface: self.interface.clone(),
            mac: self.mac,
            mtu: self.mtu,
            is_open: self.is_open,
            is_gone: self.is_gone,
        };
        serde_json::to_value(carried).map_err(io::Error::other)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.drops.end(&self.interface);
    }
}

/// The other end of an interface that exists and is up.
fn attach(interface: &str) -> Result<Tun, TapError> {
    let name = || interface.to_owned();
    let index = if_nametoindex(interface);
    let Ok(index) = index else {
        return Err(TapError::Missing { interface: name() });
    };
    let tun = Tun::open().map_err(|e| match e.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENXIO | Errno::ENODEV) => TapError::NoDriver,
        Some(Errno::EACCES | Errno::EPERM) => TapError::Driver(e),
        _ => refused(interface, e),
    })?;
    tun.attach(interface)
        .map_err(|e| match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => TapError::Denied { interface: name() },
            Some(Errno::EBUSY) => TapError::InUse { interface: name() },
            Some(Errno::EINVAL) => TapError::NoTap { interface: name() },
            _ => refused(interface, e),
        })?;
    // It went away meanwhile, and the kernel made another, which goes with the file.
    if if_nametoindex(interface) != Ok(index) {
        return Err(TapError::Missing { interface: name() });
    }
    if is_up(interface).map_err(|e| refused(interface, e.into()))? {
        Ok(tun)
    } else {
        Err(TapError::Down { interface: name() })
    }
}

fn is_up(interface: &str) -> nix::Result<bool> {
    let mut addresses = getifaddrs()?.filter(|it| it.interface_name == interface);
    Ok(addresses.any(|it| it.flags.contains(InterfaceFlags::IFF_UP)))
}

fn refused(interface: &str, source: io::Error) -> TapError {
    TapError::System {
        interface: interface.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::is_tap_name;

    #[test]
    fn interfaces_are_called_as_the_kernel_lets_them() {
        for good in ["tap0", "a", "a23456789012345", "eth0.5", "br-lan_1", "..."] {
            assert!(is_tap_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a234567890123456",
            "a/b",
            "a:b",
            "tap%d",
            "a b",
            "a\t",
            "a\n",
            "a\0",
            "\u{1b}[2J",
            "\u{e9}",
            "switch",
        ] {
            assert!(!is_tap_name(bad), "{bad:?}");
        }
    }
}
