//! The manifest, checked and owned.

use std::fmt;

use wharf_abi::manifest::{DEVICES_MAX, STACK_KIB_RANGE};
use wharf_abi::{AbiVersion, DeviceKind, DeviceRequest, Manifest};
use zerocopy::FromBytes;

use super::ImageError;

const BYTES_PER_KIB: u64 = 1024;

/// The minor version of the contract whose manifests end with a state's format.
const STATE_SCHEMA_SINCE: u16 = 3;

/// What an image says of itself: a checked [`Manifest`], or Solo5's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestView {
    /// The image's name; its file's, of an hvt guest that has none.
    pub name: String,
    /// The image's own version; an hvt guest has none, and `-` stands for it.
    pub version: String,
    /// The contract that it was built against, one that this host speaks.
    pub contract: Contract,
    /// Least memory that it can run with, in bytes, image included; 0 when it
    /// does not say. Of an hvt guest it is all that its layout needs.
    pub memory_min_bytes: u64,
    /// Stack in bytes, a multiple of 1024, within [`STACK_KIB_RANGE`]; 0 of an hvt
    /// guest, whose stack and heap are one.
    pub stack_bytes: u64,
    /// The devices that it wants, in its own order, at most [`DEVICES_MAX`], or
    /// [`HVT_DEVICES_MAX`](super::HVT_DEVICES_MAX) of an hvt guest.
    pub devices: Vec<Device>,
    /// Format of the state that it hands over; 0 when it has none.
    pub state_schema: u32,
}

/// What a guest and its host have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// wharf's own, in this version.
    Wharf(AbiVersion),
    /// Solo5's for the target hvt, in version 2.
    Hvt,
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wharf(version) => write!(f, "wharf {version}"),
            Self::Hvt => f.write_str("Solo5 hvt 2"),
        }
    }
}

/// A device that an image wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What it is to the guest.
    pub kind: DeviceKind,
    /// What the operator calls it, unique within the image.
    pub name: String,
}

/// Checks the descriptor of the note in program header `index`.
pub(super) fn check(index: usize, desc: &[u8]) -> Result<ManifestView, ImageError> {
    // The version stands first and is looked at first: another major version
    // may have another manifest behind it.
    let wrong_size = || ImageError::WrongManifestSize {
        index,
        bytes: desc.len(),
    };
    let (image, _) = AbiVersion::read_from_prefix(desc).map_err(|_| wrong_size())?;
    let host = AbiVersion::CURRENT;
    if !host.runs(image) {
        return Err(ImageError::WrongAbiVersion { image, host });
    }
    let mut desc = desc.to_vec();
    let len = desc.len();
    if image.minor < STATE_SCHEMA_SINCE {
        desc.extend(0_u32.to_le_bytes());
    }
    let manifest = Manifest::read_from_bytes(&desc)
        .map_err(|_| ImageError::WrongManifestSize { index, bytes: len })?;
    let kib = manifest.stack_kib;
    if !STACK_KIB_RANGE.contains(&kib) {
        return Err(ImageError::StackOutOfRange { kib });
    }
    let name = manifest.name.as_str().ok_or(ImageError::BadName)?;
    let version = manifest.version.as_str().ok_or(ImageError::BadVersion)?;
    Ok(ManifestView {
        name: name.to_owned(),
        version: version.to_owned(),
        contract: Contract::Wharf(manifest.abi),
        memory_min_bytes: bytes(manifest.memory_min_kib),
        stack_bytes: bytes(kib),
        devices: check_devices(&manifest)?,
        state_schema: manifest.state_schema,
    })
}

fn check_devices(manifest: &Manifest) -> Result<Vec<Device>, ImageError> {
    let count = manifest.device_count;
    let (wanted, unused) = usize::try_from(count)
        .ok()
        .and_then(|at| manifest.devices.split_at_checked(at))
        .ok_or(ImageError::TooManyDevices { count })?;
    let mut devices: Vec<Device> = Vec::with_capacity(wanted.len());
    for (device, request) in wanted.iter().enumerate() {
        let checked = check_device(device, request)?;
        if devices.iter().any(|other| other.name == checked.name) {
            return Err(ImageError::DuplicateDevice {
                device,
                name: checked.name,
            });
        }
        devices.push(checked);
    }
    for (device, request) in (wanted.len()..DEVICES_MAX).zip(unused) {
        if *request != DeviceRequest::EMPTY {
            return Err(ImageError::UnusedDeviceNotEmpty { device, count });
        }
    }
    Ok(devices)
}

fn check_device(device: usize, request: &DeviceRequest) -> Result<Device, ImageError> {
    if request.reserved != 0 {
        return Err(ImageError::DeviceReservedSet {
            device,
            value: request.reserved,
        });
    }
    let kind = DeviceKind::from_raw(request.kind).ok_or(ImageError::UnknownDeviceKind {
        device,
        kind: request.kind,
    })?;
    let name = request
        .name
        .as_str()
        .ok_or(ImageError::BadDeviceName { device })?
        .to_owned();
    Ok(Device { kind, name })
}

fn bytes(kib: u32) -> u64 {
    u64::from(kib).saturating_mul(BYTES_PER_KIB)
}
