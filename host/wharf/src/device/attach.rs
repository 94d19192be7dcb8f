//! Which back end each device of an image gets: the router's word, then opened.

use wharf_abi::DeviceKind;
use wharf_machine::device::Backend;
use wharf_machine::image::ManifestView;
use wharf_model::policy::{AttachVerdict, Attachment, DeviceKind as PolicyKind};

use super::{Block, DiskError};

/// Who asks, for a policy to know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asker<'a> {
    /// The task, as the operator calls it.
    pub task: &'a str,
    /// The time, in nanoseconds of the host's clock.
    pub now: u64,
    /// Which replica of the cell.
    pub replica: u32,
    /// Which life of it.
    pub generation: u64,
}

/// A task's devices cannot be attached. One line, with task, device and way out.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The image wants what nobody configured.
    #[error(
        "task {task}: image {image} declares the block device {device:?}, and nothing is \
         configured for it: add [[task.block]] with device = {device:?}, or --block {device}=FILE"
    )]
    NotConfigured {
        /// The task.
        task: String,
        /// The image's name.
        image: String,
        /// The device.
        device: String,
    },
    /// Somebody configured what the image does not want.
    #[error(
        "task {task}: block device {device:?} is configured, and image {image} does not declare \
         it ({declared}): take it out, or correct its name"
    )]
    NotDeclared {
        /// The task.
        task: String,
        /// The image's name.
        image: String,
        /// The device.
        device: String,
        /// What it does declare.
        declared: String,
    },
    /// A kind that is not there yet.
    #[error(
        "task {task}: image {image} declares the {kind} device {device:?}, and this version of \
         wharf has block devices only: use another image"
    )]
    NoSuchKind {
        /// The task.
        task: String,
        /// The image's name.
        image: String,
        /// The kind.
        kind: &'static str,
        /// The device.
        device: String,
    },
    /// The router said no.
    #[error("task {task}: device {device:?} is denied by the router: {reason}")]
    Denied {
        /// The task.
        task: String,
        /// The device.
        device: String,
        /// Its reason.
        reason: String,
    },
    /// What it gets cannot be opened.
    #[error("task {task}: device {device:?}")]
    Disk {
        /// The task.
        task: String,
        /// The device.
        device: String,
        /// Why not.
        source: DiskError,
    },
}

/// Finds and opens a back end for each device that `image` declares, in its order.
/// `route` is the router; a router that chooses for itself may leave some of what
/// is configured alone, the built-in one (`strict`) may not.
///
/// # Errors
///
/// [`AttachError`], for the first.
pub fn attach(
    image: &ManifestView,
    blocks: &[Block],
    asker: Asker<'_>,
    strict: bool,
    mut route: impl FnMut(Attachment) -> AttachVerdict,
) -> Result<Vec<Backend>, AttachError> {
    let task = || asker.task.to_owned();
    if strict {
        check(image, blocks, asker.task)?;
    }
    let mut backends = Vec::with_capacity(image.devices.len());
    for device in &image.devices {
        if device.kind != DeviceKind::Block {
            return Err(no_such_kind(image, device, asker.task));
        }
        let verdict = route(Attachment {
            now: asker.now,
            replica: asker.replica,
            generation: asker.generation,
            device: device.name.clone(),
            kind: PolicyKind::Block,
            backends: blocks.iter().map(|block| block.device.clone()).collect(),
        });
        let chosen = match verdict {
            AttachVerdict::Backend(place) => {
                usize::try_from(place).ok().and_then(|at| blocks.get(at))
            }
            AttachVerdict::BuiltIn => blocks.iter().find(|it| it.device == device.name),
            AttachVerdict::Deny(reason) => {
                return Err(AttachError::Denied {
                    task: task(),
                    device: device.name.clone(),
                    reason,
                });
            }
        };
        let Some(block) = chosen else {
            return Err(not_configured(image, &device.name, asker.task));
        };
        let disk = block.open().map_err(|source| AttachError::Disk {
            task: task(),
            device: device.name.clone(),
            source,
        })?;
        backends.push(Backend::Block(disk));
    }
    Ok(backends)
}

/// Whether what is configured is what an image declares, name by name.
///
/// # Errors
///
/// [`AttachError`], for the first that is not.
pub fn check(image: &ManifestView, blocks: &[Block], task: &str) -> Result<(), AttachError> {
    for device in &image.devices {
        if device.kind != DeviceKind::Block {
            return Err(no_such_kind(image, device, task));
        }
        if !blocks.iter().any(|block| block.device == device.name) {
            return Err(not_configured(image, &device.name, task));
        }
    }
    let declares = |block: &&Block| image.devices.iter().any(|it| it.name == block.device);
    match blocks.iter().find(|block| !declares(block)) {
        None => Ok(()),
        Some(block) => Err(AttachError::NotDeclared {
            task: task.to_owned(),
            image: image.name.clone(),
            device: block.device.clone(),
            declared: declared(image),
        }),
    }
}

fn declared(image: &ManifestView) -> String {
    let names: Vec<&str> = image.devices.iter().map(|it| it.name.as_str()).collect();
    match names.as_slice() {
        [] => "it declares none".to_owned(),
        names => format!("it declares {}", names.join(", ")),
    }
}

fn not_configured(image: &ManifestView, device: &str, task: &str) -> AttachError {
    AttachError::NotConfigured {
        task: task.to_owned(),
        image: image.name.clone(),
        device: device.to_owned(),
    }
}

fn no_such_kind(
    image: &ManifestView,
    device: &wharf_machine::image::Device,
    task: &str,
) -> AttachError {
    AttachError::NoSuchKind {
        task: task.to_owned(),
        image: image.name.clone(),
        kind: device.kind.as_str(),
        device: device.name.clone(),
    }
}
