//! The network: ports that are published, and what connects guests to it.
//!
//! ```text
//!              ┌─ acceptor (a thread) ─┐        ┌─ a worker ─────────────────────┐
//!   client ──▶ │ listener ──▶ router ──┼─ door ─┼▶ Sockets ◀─▶ streams ◀─▶ guest │
//!              └───────────────────────┘        └────────────────────────────────┘
//! ```
//!
//! The [`Board`] knows every published port and every guest that takes connections.
//! The acceptor takes what comes to a port, asks the router which replica is to have
//! it, and puts it through that replica's door. From then on the connection is
//! its guest's: bytes go between the socket and the guest's memory on the worker that
//! runs the guest, without another thread in between ([`Sockets`]).
//!
//! Guests that bring a network stack of their own have a port of the cell's [`Switch`]
//! instead, which carries their frames to each other and nowhere else, or a [`Tap`]
//! interface of the machine's.
//!
//! No thread watches sockets on behalf of a worker that is in a guest. A worker looks
//! at its guests' sockets between two turns, and a turn is no longer than a slice
//! while another guest of the worker has sockets: to be called out of a guest for
//! every packet would cost more than it gains.

mod acceptor;
mod board;
mod drops;
mod sockets;
mod switch;
mod tap;
mod times;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wharf_machine::Tun;
use wharf_machine::device::{Mac, Wire};
use wharf_machine::handover::{BytesRef, FileRef, Luggage};

use crate::device::carried::{CarriedError, understood};

pub use acceptor::{Acceptor, SharedPort};
pub use board::{Board, Guest, Router, Share, Traffic, Waiting};
pub use drops::FrameDrops;
pub use sockets::Sockets;
pub use switch::{Port, Switch};
pub use tap::{Tap, TapError, is_tap_name};
pub use times::{Times, TimesThen};

/// Most connections that a guest has at a time.
pub const CONNECTIONS_MAX: u32 = 1024;

/// Connections to a port that wait for a guest that takes them: it may be starting.
const WAITING_MAX: usize = 256;

/// A port of the host's that leads to one of a task's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Where the host listens; the port is not 0.
    pub address: SocketAddr,
    /// Where the guest does; not 0.
    pub guest_port: u16,
}

/// What a router knows the cell's switch as.
pub const SWITCH: &str = "switch";

/// A device for frames, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetDevice {
    /// The name that the image declares.
    pub device: String,
    /// The tap interface that it is attached to; none for the cell's switch.
    pub tap: Option<String>,
}

/// Plugs the device of this number of a replica into a tap interface, or else into a
/// switch. Its address is the same at both.
///
/// # Errors
///
/// When the interface cannot be had, or the kernel has no descriptors left.
pub fn wire(
    switch: &Arc<Switch>,
    (replica, device): (u32, u8),
    tap: Option<&str>,
    drops: Arc<FrameDrops>,
) -> Result<Box<dyn Wire>, NetError> {
    Ok(match tap {
        Some(interface) => Box::new(Tap::open(interface, switch.mac(replica, device), drops)?),
        None => Box::new(switch.plug(replica, device, drops)?),
    })
}

/// What a guest's device for frames is plugged into, for another process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum CarriedWire {
    /// A tap interface.
    Tap {
        tun: FileRef,
        interface: String,
        mac: Mac,
        mtu: u16,
        is_open: bool,
        is_gone: bool,
    },
    /// The cell's switch, with the frames that have arrived there.
    Switch {
        is_open: bool,
        frames: Vec<BytesRef>,
    },
}

/// Plugs the device of this number of a replica, which comes from another process, into
/// what it was plugged into there.
pub(crate) fn carried_wire(
    switch: &Arc<Switch>,
    (replica, device): (u32, u8),
    drops: Arc<FrameDrops>,
    carried: &Value,
    luggage: &mut Luggage,
) -> Result<Box<dyn Wire>, CarriedError> {
    Ok(match understood(carried)? {
        CarriedWire::Tap {
            tun,
            interface,
            mac,
            mtu,
            is_open,
            is_gone,
        } => {
            let tun = Tun::go_on(luggage.take_file(tun)?);
            let tap = Tap::go_on(tun, interface, (mac, mtu), (is_open, is_gone), drops);
            Box::new(tap.map_err(NetError::from)?)
        }
        CarriedWire::Switch { is_open, frames } => {
            let frame = |it| luggage.bytes(it).map(Arc::<[u8]>::from);
            let frames: Result<Vec<_>, _> = frames.into_iter().map(frame).collect();
            let port = switch.plug(replica, device, drops)?;
            Box::new(port.go_on(is_open, frames?.into_iter()))
        }
    })
}

/// A port could not be published, or a guest not be plugged in.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// It cannot be listened on.
    #[error("task {task}: cannot listen on {address}: {}", advice(.source))]
    Listen {
        /// The task that is to have it.
        task: String,
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A tap interface cannot be had.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The kernel has no descriptor or thread left.
    #[error("the kernel refused {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Names what was tried when the kernel refuses it.
fn refused(what: &'static str) -> impl Fn(nix::Error) -> NetError {
    move |e| NetError::System {
        what,
        source: e.into(),
    }
}

/// What to do about a port that cannot be listened on.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "somebody else does; end that, or publish another port",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 are for root here; publish a higher one, or lower \
             net.ipv4.ip_unprivileged_port_start"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; publish one that `ip address` shows"
        }
        _ => "publish another address",
    }
}
