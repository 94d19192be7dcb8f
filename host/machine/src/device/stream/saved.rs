//! What a snapshot keeps of streams. Connections are not in it: whoever is restored
//! learns that they are cut off.

use serde::{Deserialize, Serialize};
use wharf_abi::stream::Op;

use super::connection::{Ports, header};
use super::{FIRST_PORT, Streams};

/// Most connections of a guest that a snapshot is taken of.
pub(crate) const CONNECTIONS_MAX: usize = 1 << 14;

/// What the guest believes to have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamsState {
    /// The host's port and the guest's of each connection that the guest knows of.
    pub(crate) connections: Vec<(u32, u32)>,
    /// The port that the host gives out next: not one that the guest may still use.
    pub(crate) next_port: u32,
}

impl Streams {
    pub(in super::super) fn state(&self) -> StreamsState {
        let known = self.connections.values();
        let known = known.filter(|connection| !connection.owed.request);
        let known = known.map(|connection| (connection.ports.host, connection.ports.guest));
        let strays = self.strays.iter().map(|it| (it.src_port, it.dst_port));
        StreamsState {
            connections: known.chain(strays).collect(),
            next_port: self.next_port,
        }
    }

    /// Begins with resets of what another guest had. They go before anything else, so
    /// that no new connection is taken for one of them.
    pub(in super::super) fn go_on(&mut self, state: &StreamsState) {
        let resets = state.connections.iter().map(|&(host, guest)| {
            let ports = Ports { host, guest };
            header(ports, Op::Reset, 0)
        });
        self.strays.extend(resets);
        self.next_port = state.next_port.max(FIRST_PORT);
    }
}
