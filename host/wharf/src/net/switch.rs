//! The switch that the guests of a cell send frames to each other through.
//!
//! Who a frame is for is the model's to say ([`wharf_model::switch`]); here are the
//! ports, each with a queue of what its guest has not taken yet. The worker of the guest
//! that sends puts a frame there, the worker of the one that receives takes it out: no
//! thread in between. A queue that is full takes no more, so what a guest can make the
//! host keep is bounded, and a guest that does not read costs others nothing.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use nix::sys::eventfd::EventFd;
use serde_json::Value;
use wharf_abi::net::MTU;
use wharf_machine::device::{Mac, Way, Wire};
use wharf_machine::handover::Luggage;
use wharf_model::switch::{Forward, PortId, Switch as Table};

use super::board::{bell, lock, ring};
use super::{CarriedWire, FrameDrops, NetError};

/// Frames that wait for a guest at most, about 380 KiB.
const WAITING_MAX: usize = 256;

/// The first byte of addresses that somebody gave himself, of one port (IEEE 802,
/// 8.2.2: bit 1 set, bit 0 clear).
const LOCAL: u8 = 0x02;

/// A switch.
#[derive(Debug)]
pub struct Switch {
    /// Two bytes that tell its addresses from those of other switches.
    seed: [u8; 2],
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    table: Table,
    inboxes: HashMap<PortId, Arc<Inbox>>,
    next: u64,
}

/// A port of a switch. Dropped, it is unplugged.
#[derive(Debug)]
pub struct Port {
    switch: Arc<Switch>,
    id: PortId,
    mac: Mac,
    inbox: Arc<Inbox>,
}

/// What has arrived for a guest.
#[derive(Debug)]
struct Inbox {
    /// Readable when something has that the guest's worker has not seen.
    bell: EventFd,
    arrived: Mutex<Arrived>,
    /// Where it is counted what went nowhere.
    drops: Arc<FrameDrops>,
}

#[derive(Debug, Default)]
struct Arrived {
    frames: VecDeque<Arc<[u8]>>,
    /// The guest has a driver that takes frames.
    is_open: bool,
    /// The bell rings.
    rings: bool,
}

impl Switch {
    /// A switch that nothing is plugged into.
    #[must_use]
    pub fn new() -> Self {
        let [first, second, ..] = getrandom::u64().unwrap_or(0).to_le_bytes();
        Self {
            seed: [first, second],
            state: Mutex::default(),
        }
    }

    /// One whose addresses are those of another, which has this [`seed`](Switch::seed).
    #[must_use]
    pub fn with_seed(seed: [u8; 2]) -> Self {
        Self {
            seed,
            state: Mutex::default(),
        }
    }

    /// What its addresses begin with.
    #[must_use]
    pub const fn seed(&self) -> [u8; 2] {
        self.seed
    }

    /// Plugs in the device of this number of a replica of the cell. Its address is the
    /// same for all generations of the replica. What goes nowhere of its frames is
    /// counted in `drops`.
    ///
    /// # Errors
    ///
    /// When the kernel has no descriptors left.
    pub fn plug(
        self: &Arc<Self>,
        replica: u32,
        device: u8,
        drops: Arc<FrameDrops>,
    ) -> Result<Port, NetError> {
        let inbox = Arc::new(Inbox {
            bell: bell()?,
            arrived: Mutex::default(),
            drops,
        });
        let mac = self.mac(replica, device);
        let mut state = lock(&self.state);
        let id = PortId(state.next);
        state.next = state.next.saturating_add(1);
        state.table.plug(id, mac);
        state.inboxes.insert(id, Arc::clone(&inbox));
        Ok(Port {
            switch: Arc::clone(self),
            id,
            mac,
            inbox,
        })
    }

    /// The address of a device. A cell has far fewer than 65,536 replicas.
    pub(super) const fn mac(&self, replica: u32, device: u8) -> Mac {
        let [_, _, high, low] = replica.to_be_bytes();
        let [first, second] = self.seed;
        [LOCAL, first, second, device, high, low]
    }

    /// Sends a frame from a port; says whether it was one that may be sent.
    fn send(&self, from: PortId, frame: &[u8]) -> bool {
        let mut state = lock(&self.state);
        let forward = state.table.forward(from, frame);
        match forward {
            Forward::To(port) => {
                if let Some(inbox) = state.inboxes.get(&port) {
                    inbox.deliver(&frame.into());
                }
            }
            Forward::Flood => {
                // One copy for all.
                let frame = frame.into();
                for (_, inbox) in state.inboxes.iter().filter(|(port, _)| **port != from) {
                    inbox.deliver(&frame);
                }
            }
            Forward::Forged | Forward::Runt => return false,
            Forward::Nowhere => {}
        }
        true
    }
}

impl Port {
    /// Goes on where another port was, with the frames that had arrived there.
    pub(super) fn go_on(mut self, is_open: bool, frames: impl Iterator<Item = Arc<[u8]>>) -> Self {
        if is_open {
            self.open();
            frames.for_each(|frame| self.inbox.deliver(&frame));
        }
        self
    }
}

impl Inbox {
    fn deliver(&self, frame: &Arc<[u8]>) {
        let mut arrived = lock(&self.arrived);
        // Who has no driver listens to nothing, as with any other port.
        if !arrived.is_open {
            return;
        }
        if arrived.frames.len() >= WAITING_MAX {
            self.drops.count(Way::ToGuest);
            return;
        }
        arrived.frames.push_back(Arc::clone(frame));
        if !arrived.rings {
            arrived.rings = true;
            ring(&self.bell);
        }
    }
}

impl Default for Switch {
    fn default() -> Self {
        Self::new()
    }
}

impl Wire for Port {
    fn fd(&self) -> BorrowedFd<'_> {
        self.inbox.bell.as_fd()
    }

    fn mac(&self) -> Mac {
        self.mac
    }

    fn mtu(&self) -> u16 {
        MTU
    }

    fn open(&mut self) {
        lock(&self.inbox.arrived).is_open = true;
    }

    fn has_looked(&mut self) {
        let mut arrived = lock(&self.inbox.arrived);
        if arrived.rings {
            arrived.rings = false;
            // Only that it rang counts.
            let _ = self.inbox.bell.read();
        }
    }

    fn receive(&mut self) -> Option<Arc<[u8]>> {
        lock(&self.inbox.arrived).frames.pop_front()
    }

    fn carry(&mut self, luggage: &mut Luggage) -> io::Result<Value> {
        let arrived = lock(&self.inbox.arrived);
        let carried = CarriedWire::Switch {
            is_open: arrived.is_open,
            frames: arrived
                .frames
                .iter()
                .map(|frame| luggage.put_bytes(frame))
                .collect(),
        };
        serde_json::to_value(carried).map_err(io::Error::other)
    }

    fn send(&mut self, frame: &[u8]) {
        if !self.switch.send(self.id, frame) {
            self.was_dropped(Way::FromGuest);
        }
    }

    fn was_dropped(&mut self, way: Way) {
        self.inbox.drops.count(way);
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let mut state = lock(&self.switch.state);
        state.table.unplug(self.id);
        state.inboxes.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::sync::Arc;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use wharf_machine::device::{Mac, Wire};

    use super::{Port, Switch, WAITING_MAX};

    const ALL: Mac = [0xFF; 6];

    fn open(switch: &Arc<Switch>, replica: u32) -> Port {
        let mut port = switch.plug(replica, 0, Arc::default()).unwrap();
        port.open();
        port
    }

    /// Frames from a port and to it that went nowhere.
    fn dropped(port: &Port) -> (u64, u64) {
        (port.inbox.drops.sent(), port.inbox.drops.received())
    }

    fn frame(to: Mac, from: Mac, text: &[u8]) -> Vec<u8> {
        [&to[..], &from, &[8, 0], text].concat()
    }

    fn rings(fd: BorrowedFd<'_>) -> bool {
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    fn received(port: &mut Port) -> Vec<Vec<u8>> {
        port.has_looked();
        std::iter::from_fn(|| port.receive().map(|it| it.to_vec())).collect()
    }

    #[test]
    fn frames_reach_who_they_are_for() {
        let switch = Arc::new(Switch::new());
        let [mut a, mut b, mut c] = [1, 2, 3].map(|it| open(&switch, it));
        let hello = frame(ALL, a.mac(), b"hello");
        a.send(&hello);
        assert!(!rings(a.fd()) && rings(b.fd()) && rings(c.fd()));
        for port in [&mut b, &mut c] {
            assert_eq!(received(port), [frame(ALL, a.mac(), b"hello")]);
        }
        let answer = frame(a.mac(), b.mac(), b"here");
        b.send(&answer);
        assert!(rings(a.fd()) && !rings(b.fd()) && !rings(c.fd()));
        assert_eq!(received(&mut a), [answer]);
        assert_eq!(received(&mut c), Vec::<Vec<u8>>::new());
    }

    /// Rings once, and again only for what comes after a look.
    #[test]
    fn what_was_seen_and_not_taken_does_not_ring() {
        let switch = Arc::new(Switch::new());
        let [mut a, mut b] = [1, 2].map(|it| open(&switch, it));
        for _ in 0..3 {
            a.send(&frame(ALL, a.mac(), b"x"));
        }
        assert!(rings(b.fd()));
        b.has_looked();
        assert!(!rings(b.fd()) && b.receive().is_some());
        a.send(&frame(ALL, a.mac(), b"x"));
        assert!(rings(b.fd()));
        assert_eq!(received(&mut b).len(), 3);
    }

    #[test]
    fn a_flood_is_bounded_and_harms_who_does_not_read_alone() {
        let switch = Arc::new(Switch::new());
        let [mut a, mut b, mut c] = [1, 2, 3].map(|it| open(&switch, it));
        let waiting = u64::try_from(WAITING_MAX).unwrap();
        for round in 0..waiting * 4 {
            a.send(&frame(ALL, a.mac(), &round.to_be_bytes()));
            assert_eq!(received(&mut c).len(), 1);
        }
        let counts = [&a, &b, &c].map(dropped);
        assert_eq!(counts, [(0, 0), (0, waiting * 3), (0, 0)]);
        // The first ones, in their order.
        let kept = received(&mut b);
        assert_eq!(kept.len(), WAITING_MAX);
        assert!(kept[0].ends_with(&0_u64.to_be_bytes()));
        assert!(kept[WAITING_MAX - 1].ends_with(&(waiting - 1).to_be_bytes()));
    }

    #[test]
    fn forged_frames_are_counted_and_go_nowhere() {
        let switch = Arc::new(Switch::new());
        let [mut a, mut b, mut c] = [1, 2, 3].map(|it| open(&switch, it));
        for source in [b.mac(), [2, 0, 0, 0, 0, 9], ALL] {
            a.send(&frame(ALL, source, b"x"));
            a.send(&frame(c.mac(), source, b"x"));
        }
        assert_eq!([&a, &b, &c].map(dropped), [(6, 0), (0, 0), (0, 0)]);
        for port in [&mut b, &mut c] {
            assert_eq!(received(port), Vec::<Vec<u8>>::new());
        }
        // What is for B still reaches B.
        b.send(&frame(ALL, b.mac(), b"x"));
        c.send(&frame(b.mac(), c.mac(), b"y"));
        assert_eq!(received(&mut b).len(), 1);
    }

    #[test]
    fn who_has_no_driver_or_is_gone_is_kept_nothing_for() {
        let switch = Arc::new(Switch::new());
        let mut a = open(&switch, 1);
        let mut b = switch.plug(2, 0, Arc::default()).unwrap();
        let c = open(&switch, 3);
        let inbox = Arc::downgrade(&c.inbox);
        drop(c);
        assert!(inbox.upgrade().is_none());
        a.send(&frame(ALL, a.mac(), b"x"));
        assert_eq!(received(&mut b), Vec::<Vec<u8>>::new());
        assert_eq!([&a, &b].map(dropped), [(0, 0), (0, 0)]);
    }

    #[test]
    fn addresses_are_of_one_port_and_not_anybodys_own() {
        let switch = Arc::new(Switch::new());
        let ports = [(0, 0), (0, 1), (1, 0), (300, 0)];
        let mac = |(replica, device)| {
            let port = switch.plug(replica, device, Arc::default()).unwrap();
            port.mac
        };
        let mut macs = ports.map(mac);
        assert!(macs.iter().all(|mac| mac[0] & 3 == 2));
        assert_eq!(macs[0], mac((0, 0)));
        macs.sort_unstable();
        assert!(macs.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
