//! Which back end each device of an image gets: the router's word, then opened.

use std::io;
use std::net::SocketAddr;

use wharf_abi::DeviceKind;
use wharf_machine::device::{Backend, Console, Disk, Frames, Input, Network, Streams, Wire};
use wharf_machine::image::ManifestView;
use wharf_model::policy::{AttachVerdict, Attachment, DeviceKind as PolicyKind};

use super::{Block, DiskError};
use crate::net::{NetDevice, NetError, Publish, SWITCH};

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
        "task {task}: {kind} device {device:?} is configured, and image {image} does not declare \
         it ({declared}): take it out, or correct its name"
    )]
    NotDeclared {
        /// The task.
        task: String,
        /// The image's name.
        image: String,
        /// What it would be.
        kind: &'static str,
        /// The device.
        device: String,
        /// What it does declare.
        declared: String,
    },
    /// A port is published, and the image takes no connections.
    #[error(
        "task {task}: {address} is published, and image {image} declares no stream device: take \
         publish out, or add stream = [\"net\"] to the image's `#[wharf::main]`"
    )]
    NoStream {
        /// The task.
        task: String,
        /// The image's name.
        image: String,
        /// The port.
        address: SocketAddr,
    },
    /// It is to have a share of another task's connections, and its image takes none.
    #[error(
        "task {task}: joins {joins:?}, and image {image} declares no stream device: take joins \
         out, or add stream = [\"net\"] to the image's `#[wharf::main]`"
    )]
    JoinsWithoutStream {
        /// The task.
        task: String,
        /// The image's name.
        image: String,
        /// The task that it joins.
        joins: String,
    },
    /// One network is all there is.
    #[error(
        "task {task}: image {image} declares the stream device {device:?} and another one before \
         it: one is all that an image can have"
    )]
    SecondStream {
        /// The task.
        task: String,
        /// The image's name.
        image: String,
        /// The device.
        device: String,
    },
    /// There is nothing for its connections or frames.
    #[error("task {task}: device {device:?}")]
    Network {
        /// The task.
        task: String,
        /// The device.
        device: String,
        /// Why not.
        source: NetError,
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

/// What is configured of a task that goes with what its image declares.
#[derive(Clone, Copy, Debug, Default)]
pub struct Configured<'a> {
    /// Its block devices.
    pub blocks: &'a [Block],
    /// Its devices for frames; those that are not among them are on the switch.
    pub nets: &'a [NetDevice],
    /// Its published ports.
    pub publish: &'a [Publish],
    /// The task whose published ports lead to it as well.
    pub joins: Option<&'a str>,
}

/// Makes what stands behind the device of that number, of those for frames: that tap
/// interface, or else the switch.
pub type MakeWire<'a> = dyn Fn(u8, Option<&str>) -> Result<Box<dyn Wire>, NetError> + 'a;

/// Another way to a disk that somebody has.
pub type Shared = io::Result<Box<dyn Disk>>;

/// What is there for a task's devices.
pub struct Supply<'a> {
    /// What the operator said.
    pub configured: Configured<'a>,
    /// Another way to a block device of the generation before, which has it.
    pub legacy: &'a dyn Fn(&Block) -> Option<Shared>,
    /// Makes what stands behind its streams.
    pub network: &'a dyn Fn() -> Result<Box<dyn Network>, NetError>,
    /// Makes what it reads; nothing, for a task in the background.
    pub input: &'a dyn Fn() -> Option<Box<dyn Input>>,
    /// Makes what stands behind its devices for frames.
    pub wire: &'a MakeWire<'a>,
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
    supply: &Supply<'_>,
    asker: Asker<'_>,
    strict: bool,
    mut route: impl FnMut(Attachment) -> AttachVerdict,
) -> Result<Vec<Backend>, AttachError> {
    let task = || asker.task.to_owned();
    let Configured { blocks, nets, .. } = supply.configured;
    check(image, supply.configured, asker.task, strict)?;
    let mut backends = Vec::with_capacity(image.devices.len());
    let mut wires = 0..=u8::MAX;
    for device in &image.devices {
        let tap = nets
            .iter()
            .find(|it| it.device == device.name)
            .and_then(|it| it.tap.as_deref());
        let (kind, names) = match device.kind {
            DeviceKind::Block => (
                PolicyKind::Block,
                blocks.iter().map(|block| block.device.clone()).collect(),
            ),
            // There is one network, for whatever name.
            DeviceKind::Stream => (PolicyKind::Stream, vec![device.name.clone()]),
            DeviceKind::Net => (
                PolicyKind::Frames,
                tap.into_iter().chain([SWITCH]).map(str::to_owned).collect(),
            ),
            // Nothing to route: there is one of each, and it leads nowhere.
            DeviceKind::Entropy => {
                backends.push(Backend::Entropy);
                continue;
            }
            DeviceKind::Console => {
                backends.push(Backend::Console(Box::new(Console::new((supply.input)()))));
                continue;
            }
        };
        let verdict = route(Attachment {
            now: asker.now,
            replica: asker.replica,
            generation: asker.generation,
            device: device.name.clone(),
            kind,
            backends: names,
        });
        if let AttachVerdict::Deny(reason) = verdict {
            return Err(AttachError::Denied {
                task: task(),
                device: device.name.clone(),
                reason,
            });
        }
        let no_network = |source| AttachError::Network {
            task: task(),
            device: device.name.clone(),
            source,
        };
        match device.kind {
            DeviceKind::Stream => {
                let network = (supply.network)().map_err(no_network)?;
                backends.push(Backend::Stream(Box::new(Streams::new(network))));
                continue;
            }
            DeviceKind::Net => {
                // An image has far fewer devices.
                let number = wires.next().unwrap_or(u8::MAX);
                let tap = tap.filter(|_| verdict == AttachVerdict::Backend(0));
                let wire = (supply.wire)(number, tap).map_err(no_network)?;
                backends.push(Backend::Net(Box::new(Frames::new(wire))));
                continue;
            }
            _ => {}
        }
        let chosen = match verdict {
            AttachVerdict::Backend(place) => {
                usize::try_from(place).ok().and_then(|at| blocks.get(at))
            }
            _ => blocks.iter().find(|it| it.device == device.name),
        };
        let Some(block) = chosen else {
            return Err(not_configured(image, &device.name, asker.task));
        };
        let disk = match (supply.legacy)(block) {
            Some(shared) => shared.map_err(|source| DiskError::Share { source }),
            None => block.open(),
        };
        let disk = disk.map_err(|source| AttachError::Disk {
            task: task(),
            device: device.name.clone(),
            source,
        })?;
        backends.push(Backend::Block(disk));
    }
    Ok(backends)
}

/// Whether what is configured is what an image declares: its connections, and, when
/// `strict`, its devices, name by name.
///
/// # Errors
///
/// [`AttachError`], for the first that is not.
pub fn check(
    image: &ManifestView,
    configured: Configured<'_>,
    task: &str,
    strict: bool,
) -> Result<(), AttachError> {
    check_streams(image, configured, task)?;
    if !strict {
        return Ok(());
    }
    let Configured { blocks, nets, .. } = configured;
    let mut wanted = image.devices.iter();
    let is_configured = |name: &String| blocks.iter().any(|it| it.device == *name);
    if let Some(device) = wanted.find(|it| it.kind == DeviceKind::Block && !is_configured(&it.name))
    {
        return Err(not_configured(image, &device.name, task));
    }
    let blocks = blocks.iter().map(|it| (DeviceKind::Block, &it.device));
    let nets = nets.iter().map(|it| (DeviceKind::Net, &it.device));
    let is_declared = |(kind, name): &(DeviceKind, &String)| {
        let mut devices = image.devices.iter();
        devices.any(|it| it.kind == *kind && it.name == **name)
    };
    match blocks.chain(nets).find(|it| !is_declared(it)) {
        None => Ok(()),
        Some((kind, device)) => Err(AttachError::NotDeclared {
            task: task.to_owned(),
            image: image.name.clone(),
            kind: if kind == DeviceKind::Net {
                "net"
            } else {
                "block"
            },
            device: device.clone(),
            declared: declared(image, kind),
        }),
    }
}

/// Whether ports that lead to a task have an image that takes connections.
fn check_streams(
    image: &ManifestView,
    configured: Configured<'_>,
    task: &str,
) -> Result<(), AttachError> {
    let is_stream = |it: &&wharf_machine::image::Device| it.kind == DeviceKind::Stream;
    let mut streams = image.devices.iter().filter(is_stream);
    let (first, second) = (streams.next(), streams.next());
    if let Some(second) = second {
        return Err(AttachError::SecondStream {
            task: task.to_owned(),
            image: image.name.clone(),
            device: second.name.clone(),
        });
    }
    if first.is_some() {
        return Ok(());
    }
    let (task, image) = (task.to_owned(), image.name.clone());
    match (configured.publish.first(), configured.joins) {
        (Some(port), _) => Err(AttachError::NoStream {
            task,
            image,
            address: port.address,
        }),
        (None, Some(joins)) => Err(AttachError::JoinsWithoutStream {
            task,
            image,
            joins: joins.to_owned(),
        }),
        (None, None) => Ok(()),
    }
}

/// What an image declares of a kind.
fn declared(image: &ManifestView, kind: DeviceKind) -> String {
    let devices = image.devices.iter().filter(|it| it.kind == kind);
    let names: Vec<&str> = devices.map(|it| it.name.as_str()).collect();
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
