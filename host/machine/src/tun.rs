//! The other end of a tap interface: what the kernel's network sends to it is read here,
//! frame by frame, and what is written here it receives.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;

use crate::ioctl::{InterfaceRequest, interface_mtu, set_no_tun_offloads, set_tun_interface};

/// Ethernet frames (`IFF_TAP`), bare (`IFF_NO_PI`).
const FLAGS: i16 = 0x1002;

/// An open `/dev/net/tun`. Nothing in it blocks.
#[derive(Debug)]
pub struct Tun(File);

impl Tun {
    /// Opens it; it is no interface's other end yet.
    ///
    /// # Errors
    ///
    /// As open(2).
    pub fn open() -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.custom_flags(libc::O_NONBLOCK);
        options.open("/dev/net/tun").map(Self)
    }

    /// Makes it the other end of the tap interface that is called so, which is made, for
    /// as long as this is open, when there is none.
    ///
    /// # Errors
    ///
    /// As `TUNSETIFF`: `EPERM`, `EBUSY`, and `EINVAL` when the interface is no tap; also
    /// when the name is too long for one.
    pub fn attach(&self, interface: &str) -> io::Result<()> {
        let request = InterfaceRequest::new(name(interface)?, FLAGS);
        set_tun_interface(&self.0, request)?;
        // Whoever had the interface before may have wanted them.
        set_no_tun_offloads(&self.0)
    }

    /// Goes on with one that another process had.
    #[must_use]
    pub fn go_on(file: OwnedFd) -> Self {
        Self(file.into())
    }

    /// The same file, for another process.
    ///
    /// # Errors
    ///
    /// When this process has no descriptors left.
    pub fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }

    /// Most bytes behind the Ethernet header that the kernel sends to an interface at
    /// once, of whatever kind, as it is set now.
    ///
    /// # Errors
    ///
    /// `ENODEV` when there is none.
    pub fn mtu(interface: &str) -> io::Result<u64> {
        // Any socket is as good: which network it is of counts.
        let mtu = interface_mtu(&UnixDatagram::unbound()?, name(interface)?)?;
        u64::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Takes the frame that has waited longest, cut off where `into` ends; its bytes.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] when there is none; `EBADFD` when the interface is
    /// gone.
    pub fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(into)
    }

    /// Has the kernel's network receive a frame.
    ///
    /// # Errors
    ///
    /// `EIO` when the interface is down, `EBADFD` when it is gone.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // A frame is taken whole or not at all.
        (&self.0).write(frame).map(|_| ())
    }
}

/// An interface's name as the kernel takes it.
fn name(interface: &str) -> io::Result<[u8; libc::IFNAMSIZ]> {
    let mut name = [0; libc::IFNAMSIZ];
    let bytes = interface.as_bytes();
    // The last byte ends it.
    let place = name.get_mut(..bytes.len());
    let place = place.filter(|place| place.len() < libc::IFNAMSIZ);
    place
        .ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(bytes);
    Ok(name)
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::{FLAGS, Tun};

    #[test]
    fn the_flags_are_the_kernels() {
        assert_eq!(i32::from(FLAGS), libc::IFF_TAP | libc::IFF_NO_PI);
    }

    /// Every machine has a loopback, whose MTU the kernel chooses.
    #[test]
    fn an_interface_says_its_longest_packet() {
        assert_eq!(Tun::mtu("lo").unwrap(), 65536);
        let missing = Tun::mtu("none0").unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENODEV));
        for bad in ["a234567890123456", "a2345678901234567"] {
            let refused = Tun::mtu(bad).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
        }
    }
}
