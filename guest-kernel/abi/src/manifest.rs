//! What an image says of itself before it runs.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use crate::AbiVersion;

/// Most devices that an image can declare.
pub const DEVICES_MAX: usize = 16;

/// Least and most stack that an image can ask for, in KiB.
pub const STACK_KIB_RANGE: core::ops::RangeInclusive<u32> = 4..=64 * 1024;

/// Stack of an image that asks for none in particular, in KiB.
pub const STACK_KIB_DEFAULT: u32 = 256;

/// A short name: UTF-8, padded with NUL bytes to `N`.
///
/// Valid when it is not empty, holds only ASCII letters, digits, `.`, `_`, `+`
/// and `-`, and nothing follows the first NUL but NULs. An image is hostile, so
/// a host must go through [`Name::as_str`], which checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Name<const N: usize>([u8; N]);

impl<const N: usize> Name<N> {
    /// Nothing: what unused entries hold.
    pub const EMPTY: Self = Self([0; N]);

    /// Makes a name at compile time.
    ///
    /// # Panics
    ///
    /// When `text` is no valid name or longer than `N`. In a `const`, as the
    /// macros of wharf-rt use it, that is a compile error.
    #[must_use]
    pub const fn new(text: &str) -> Self {
        let text = text.as_bytes();
        assert!(!text.is_empty(), "a name must not be empty");
        assert!(text.len() <= N, "a name is too long");
        let mut name = [0; N];
        let mut at = 0;
        while at < text.len() {
            assert!(
                is_name_byte(text[at]),
                "a name holds a character other than letters, digits, '.', '_', '+', '-'"
            );
            name[at] = text[at];
            at += 1;
        }
        Self(name)
    }

    /// The name, or `None` when the bytes are no valid one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(N);
        let (text, padding) = self.0.split_at_checked(end)?;
        let valid = !text.is_empty()
            && text.iter().all(|&b| is_name_byte(b))
            && padding.iter().all(|&b| b == 0);
        if valid {
            core::str::from_utf8(text).ok()
        } else {
            None
        }
    }
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'+' | b'-')
}

/// What a device is, as the guest sees it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, IntoBytes, Immutable, KnownLayout, TryFromBytes,
)]
#[repr(u16)]
pub enum DeviceKind {
    /// Durable bytes in sectors (virtio-blk).
    Block = 1,
    /// Connections as byte streams (virtio-vsock).
    Stream = 2,
    /// Ethernet frames (virtio-net).
    Net = 3,
    /// Random bytes (virtio-rng).
    Entropy = 4,
    /// Bytes from the operator (virtio-console).
    Console = 5,
}

impl DeviceKind {
    /// The kind behind its number.
    #[must_use]
    pub const fn from_raw(raw: u16) -> Option<Self> {
        match raw {
            1 => Some(Self::Block),
            2 => Some(Self::Stream),
            3 => Some(Self::Net),
            4 => Some(Self::Entropy),
            5 => Some(Self::Console),
            _ => None,
        }
    }

    /// The number of this kind.
    #[must_use]
    pub const fn raw(self) -> u16 {
        self as u16
    }

    /// The word for this kind in commands and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Stream => "stream",
            Self::Net => "net",
            Self::Entropy => "entropy",
            Self::Console => "console",
        }
    }
}

/// A device that an image wants. The host binds a backend to it, or does not
/// start the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceRequest {
    /// A [`DeviceKind`] number.
    pub kind: u16,
    /// Must be 0.
    pub reserved: u16,
    /// What the operator calls it, unique within the image.
    pub name: Name<32>,
}

impl DeviceRequest {
    /// No request: what unused entries hold.
    pub const EMPTY: Self = Self {
        kind: 0,
        reserved: 0,
        name: Name::EMPTY,
    };

    /// Asks for a device.
    ///
    /// # Panics
    ///
    /// As [`Name::new`].
    #[must_use]
    pub const fn new(kind: DeviceKind, name: &str) -> Self {
        Self {
            kind: kind as u16,
            reserved: 0,
            name: Name::new(name),
        }
    }
}

/// The descriptor of the image's ELF note ([`crate::note`]).
///
/// It needs no relocation and no section name, so a host can read it from a
/// stripped image before it maps anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Manifest {
    /// The contract that the image was built against.
    pub abi: AbiVersion,
    /// Least memory that the image can run with, in KiB, image included; 0 when
    /// it does not say.
    pub memory_min_kib: u32,
    /// Stack in KiB, within [`STACK_KIB_RANGE`].
    pub stack_kib: u32,
    /// How many of `devices` are requests; the rest must be empty.
    pub device_count: u32,
    /// The image's name.
    pub name: Name<64>,
    /// The image's own version.
    pub version: Name<32>,
    /// The devices that it wants.
    pub devices: [DeviceRequest; DEVICES_MAX],
    /// Format of the state that it hands over and inherits
    /// ([`upgrade`](crate::upgrade)); 0 when it has none. Images of contracts before
    /// 1.3 end before this field.
    pub state_schema: u32,
}

impl Manifest {
    /// A manifest of this version of the contract with default sizes and no device.
    ///
    /// # Panics
    ///
    /// As [`Name::new`], for either argument.
    #[must_use]
    pub const fn new(name: &str, version: &str) -> Self {
        Self {
            abi: AbiVersion::CURRENT,
            memory_min_kib: 0,
            stack_kib: STACK_KIB_DEFAULT,
            device_count: 0,
            name: Name::new(name),
            version: Name::new(version),
            devices: [DeviceRequest::EMPTY; DEVICES_MAX],
            state_schema: 0,
        }
    }

    /// The same with a least memory.
    #[must_use]
    pub const fn with_memory_min_kib(mut self, kib: u32) -> Self {
        self.memory_min_kib = kib;
        self
    }

    /// The same with another stack.
    ///
    /// # Panics
    ///
    /// When `kib` is outside [`STACK_KIB_RANGE`].
    #[must_use]
    pub const fn with_stack_kib(mut self, kib: u32) -> Self {
        assert!(
            kib >= *STACK_KIB_RANGE.start() && kib <= *STACK_KIB_RANGE.end(),
            "a stack is between 4 KiB and 64 MiB"
        );
        self.stack_kib = kib;
        self
    }

    /// The same with a state of that format.
    #[must_use]
    pub const fn with_state_schema(mut self, schema: u32) -> Self {
        self.state_schema = schema;
        self
    }

    /// The same with one more device.
    ///
    /// # Panics
    ///
    /// After [`DEVICES_MAX`] devices, and as [`Name::new`].
    #[must_use]
    pub const fn with_device(mut self, kind: DeviceKind, name: &str) -> Self {
        assert!(
            (self.device_count as usize) < DEVICES_MAX,
            "too many devices"
        );
        self.devices[self.device_count as usize] = DeviceRequest::new(kind, name);
        self.device_count += 1;
        self
    }
}

const _: () = {
    use core::mem::{align_of, offset_of, size_of};
    assert!(size_of::<DeviceRequest>() == 36);
    assert!(size_of::<Manifest>() == 692);
    assert!(align_of::<Manifest>() == 4);
    assert!(offset_of!(Manifest, memory_min_kib) == 4);
    assert!(offset_of!(Manifest, stack_kib) == 8);
    assert!(offset_of!(Manifest, device_count) == 12);
    assert!(offset_of!(Manifest, name) == 16);
    assert!(offset_of!(Manifest, version) == 80);
    assert!(offset_of!(Manifest, devices) == 112);
    assert!(offset_of!(Manifest, state_schema) == 688);
};

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::{DeviceKind, Manifest, Name};

    #[test]
    fn a_name_round_trips() {
        assert_eq!(Name::<8>::new("kv-2.0_b").as_str(), Some("kv-2.0_b"));
        assert_eq!(Name::<64>::new("http").as_str(), Some("http"));
    }

    #[test]
    fn hostile_names_are_no_names() {
        let hostile: [&[u8; 4]; 7] = [
            b"\0\0\0\0",
            b"a\0b\0",
            b"\x1b[2J",
            b"a b\0",
            b"\xff\xfe\0\0",
            b"a\n\0\0",
            b"a/b\0",
        ];
        for bytes in hostile {
            let name = Name::<4>::read_from_bytes(bytes).unwrap();
            assert_eq!(name.as_str(), None, "{bytes:?}");
        }
    }

    #[test]
    fn device_kinds_round_trip() {
        for raw in 0..=u16::MAX {
            if let Some(kind) = DeviceKind::from_raw(raw) {
                assert_eq!(kind as u16, raw);
            }
        }
        let manifest = Manifest::new("a", "1").with_device(DeviceKind::Block, "data");
        assert_eq!(manifest.device_count, 1);
        assert_eq!(manifest.devices[0].name.as_str(), Some("data"));
    }
}
