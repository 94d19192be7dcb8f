//! The ioctls that nobody has a safe function for: some of KVM's, and those of a tap
//! interface.

#![expect(
    unsafe_code,
    reason = "raw ioctls on KVM's and tap interfaces' descriptors"
)]

use std::fs::File;
use std::io;
use std::os::unix::net::UnixDatagram;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr, kvm_signal_mask, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);

/// A kernel signal set as `KVM_SET_SIGNAL_MASK` takes it: the header of
/// [`kvm_signal_mask`], whose array has no length of its own, with eight bytes
/// behind it.
#[repr(C)]
struct SignalMask {
    header: kvm_signal_mask,
    sigset: [u8; 8],
}

/// A `struct ifreq` that says flags (netdevice(7)).
#[repr(C)]
pub(crate) struct InterfaceRequest {
    /// The interface's name, with a NUL behind it.
    pub(crate) name: [u8; libc::IFNAMSIZ],
    /// What is asked for.
    pub(crate) flags: i16,
    rest: [u8; 22],
}

impl InterfaceRequest {
    pub(crate) const fn new(name: [u8; libc::IFNAMSIZ], flags: i16) -> Self {
        Self {
            name,
            flags,
            rest: [0; 22],
        }
    }
}

/// A `struct ifreq` that says the longest packet (netdevice(7)).
#[repr(C)]
struct InterfaceMtu {
    name: [u8; libc::IFNAMSIZ],
    mtu: libc::c_int,
    rest: [u8; 20],
}

/// Lets every signal interrupt the guest, also those that the thread blocks.
///
/// A signal that is blocked outside `KVM_RUN` and pending when it starts makes
/// it return `EINTR` at once, so a kick is never lost, and needs no handler
/// (KVM api.rst, `KVM_SET_SIGNAL_MASK`).
///
/// # Errors
///
/// As the ioctl.
pub(crate) fn unblock_signals_in_guest(vcpu: &VcpuFd) -> io::Result<()> {
    let mask = SignalMask {
        header: kvm_signal_mask {
            len: 8,
            ..Default::default()
        },
        sigset: [0; 8],
    };
    // SAFETY: the kernel reads the header's length, 8, and as many bytes behind
    // the header, which `SignalMask` has; it writes nothing.
    let done = unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) };
    outcome(done)
}

/// Makes the guest's TSC the host's (`KVM_VCPU_TSC_OFFSET`, KVM
/// devices/vcpu.rst §4).
///
/// # Errors
///
/// As the ioctl; kernels before 5.16 and VMs without TSC offsetting have none.
pub(crate) fn zero_tsc_offset(vcpu: &VcpuFd) -> io::Result<()> {
    let offset = 0_u64;
    let attr = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        // The kernel reads behind it: an address alone would not say so.
        addr: u64::try_from((&raw const offset).expose_provenance()).unwrap_or(0),
    };
    // SAFETY: the kernel reads eight bytes at `addr`, which is the address of
    // `offset`, alive until after the call; it writes nothing.
    let done = unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attr) };
    outcome(done)
}

/// Sets x87, SSE and further state of a vCPU (`KVM_SET_XSAVE`, KVM api.rst §4.43).
///
/// # Errors
///
/// As the ioctl.
pub(crate) fn set_xsave(vcpu: &VcpuFd, area: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM reads the 4096 bytes that `area` has, and more only when the process
    // has asked for larger features by arch_prctl(2), which wharf nowhere does.
    unsafe { vcpu.set_xsave(area) }
}

/// Makes an open `/dev/net/tun` the other end of an interface (`TUNSETIFF`, Linux
/// networking/tuntap.rst).
///
/// # Errors
///
/// As the ioctl.
pub(crate) fn set_tun_interface(tun: &File, mut request: InterfaceRequest) -> io::Result<()> {
    // SAFETY: `tun` is `/dev/net/tun`, which `Tun` opened. The kernel reads and writes a
    // `struct ifreq` at `request`, which is as long, and keeps no pointer to it.
    let done = unsafe { ioctl_with_mut_ref(tun, libc::TUNSETIFF, &mut request) };
    outcome(done)
}

/// Has the kernel finish its frames before they are read: whole checksums, and none
/// that is longer than the MTU (`TUNSETOFFLOAD`).
///
/// # Errors
///
/// As the ioctl.
pub(crate) fn set_no_tun_offloads(tun: &File) -> io::Result<()> {
    // SAFETY: `tun` is `/dev/net/tun`, which `Tun` opened. The kernel takes the argument
    // for a number and touches no memory of ours.
    let done = unsafe { ioctl_with_val(tun, libc::TUNSETOFFLOAD, 0) };
    outcome(done)
}

/// Most bytes behind the Ethernet header that go through the interface of this name, a
/// NUL behind it (`SIOCGIFMTU`, netdevice(7)), in the network that the socket is of.
///
/// # Errors
///
/// As the ioctl: `ENODEV` when there is none.
pub(crate) fn interface_mtu(
    socket: &UnixDatagram,
    name: [u8; libc::IFNAMSIZ],
) -> io::Result<libc::c_int> {
    let mut request = InterfaceMtu {
        name,
        mtu: 0,
        rest: [0; 20],
    };
    // SAFETY: the kernel reads and writes a `struct ifreq` at `request`, which is as
    // long, and keeps no pointer to it.
    let done = unsafe { ioctl_with_mut_ref(socket, libc::SIOCGIFMTU, &mut request) };
    outcome(done)?;
    Ok(request.mtu)
}

/// What an ioctl says that answers nothing but whether it was done.
fn outcome(done: i32) -> io::Result<()> {
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::{InterfaceMtu, InterfaceRequest, SignalMask};

    #[test]
    fn an_interface_request_is_as_the_kernel_has_it() {
        assert_eq!(size_of::<InterfaceRequest>(), size_of::<libc::ifreq>());
        let flags = std::mem::offset_of!(libc::ifreq, ifr_ifru);
        assert_eq!(std::mem::offset_of!(InterfaceRequest, flags), flags);
        assert_eq!(size_of::<InterfaceMtu>(), size_of::<libc::ifreq>());
        assert_eq!(std::mem::offset_of!(InterfaceMtu, mtu), flags);
    }

    #[test]
    fn the_signal_set_follows_the_length() {
        assert_eq!(std::mem::offset_of!(SignalMask, sigset), 4);
        assert_eq!(size_of::<SignalMask>(), 12);
    }
}
