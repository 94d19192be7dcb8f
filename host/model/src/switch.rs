//! Where an Ethernet frame goes: the table of a learning switch.
//!
//! Every port belongs to one guest, which the host gave an address. A frame from a port
//! has that address as its source or goes nowhere, so nobody speaks for another, and
//! what the switch learns is true: on which port an address was last heard.
//!
//! A frame to an address that was heard goes to its port alone. One to a group, or to
//! somebody not heard yet, goes to all ports but the one that it came from.

use std::collections::{BTreeMap, HashMap};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Addresses that a switch remembers; of more, those heard first are forgotten.
pub const LEARNED_MAX: usize = 1024;

/// A port of a switch; never given to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u64);

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// It goes to one port.
    To(PortId),
    /// It goes to all ports but its own.
    Flood,
    /// It goes nowhere: who sent it is who it is for.
    Nowhere,
    /// It goes nowhere: it is not from who it says, or from no port.
    Forged,
    /// It goes nowhere: it is too short to be from anybody.
    Runt,
}

/// Who is where.
#[derive(Clone, Debug, Default)]
pub struct Switch {
    /// The ports, and whose address each has.
    ports: BTreeMap<PortId, Mac>,
    learned: HashMap<Mac, Heard>,
    /// Addresses learned so far.
    lessons: u64,
}

/// Where an address was last heard.
#[derive(Clone, Copy, Debug)]
struct Heard {
    on: PortId,
    /// Which lesson it was.
    lesson: u64,
}

impl Switch {
    /// Adds a port of whoever has this address. Two may have the same one, such as two
    /// lives of one guest: then it is where it was heard last.
    pub fn plug(&mut self, port: PortId, owner: Mac) {
        self.ports.insert(port, owner);
    }

    /// Takes a port away, and what was heard on it.
    pub fn unplug(&mut self, port: PortId) {
        self.ports.remove(&port);
        self.learned.retain(|_, heard| heard.on != port);
    }

    /// The ports that there are.
    pub fn ports(&self) -> impl Iterator<Item = PortId> {
        self.ports.keys().copied()
    }

    /// How many addresses it remembers.
    #[must_use]
    pub fn learned(&self) -> usize {
        self.learned.len()
    }

    /// Says where a frame goes that came from a port, and learns from it.
    pub fn forward(&mut self, from: PortId, frame: &[u8]) -> Forward {
        let Some([destination, source]) = addresses(frame) else {
            return Forward::Runt;
        };
        if self.ports.get(&from) != Some(&source) {
            return Forward::Forged;
        }
        self.learn(source, from);
        if is_group(destination) {
            return Forward::Flood;
        }
        match self.learned.get(&destination) {
            Some(heard) if heard.on == from => Forward::Nowhere,
            Some(heard) => Forward::To(heard.on),
            None => Forward::Flood,
        }
    }

    fn learn(&mut self, source: Mac, on: PortId) {
        // A group is nobody that could be on a port.
        if is_group(source) {
            return;
        }
        if let Some(heard) = self.learned.get_mut(&source) {
            heard.on = on;
            return;
        }
        if self.learned.len() >= LEARNED_MAX {
            let oldest = self.learned.iter().min_by_key(|(_, heard)| heard.lesson);
            if let Some(oldest) = oldest.map(|(mac, _)| *mac) {
                self.learned.remove(&oldest);
            }
        }
        let lesson = self.lessons;
        self.lessons = self.lessons.saturating_add(1);
        self.learned.insert(source, Heard { on, lesson });
    }
}

/// Who a frame says it is from; none when it is too short to say.
#[must_use]
pub fn source(frame: &[u8]) -> Option<Mac> {
    addresses(frame).map(|[_, source]| source)
}

/// Destination and source of a frame.
fn addresses(frame: &[u8]) -> Option<[Mac; 2]> {
    let (destination, rest) = frame.split_first_chunk()?;
    let (source, _) = rest.split_first_chunk()?;
    Some([*destination, *source])
}

/// Whether an address is many's: multicast, of which broadcast is one.
const fn is_group([first, ..]: Mac) -> bool {
    first & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::{Forward, LEARNED_MAX, Mac, PortId, Switch};

    const A: Mac = [2, 0, 0, 0, 0, 0xA];
    const B: Mac = [2, 0, 0, 0, 0, 0xB];
    const C: Mac = [2, 0, 0, 0, 0, 0xC];
    const ALL: Mac = [0xFF; 6];

    const fn port(number: u64) -> PortId {
        PortId(number)
    }

    /// A switch with A, B and C on ports 1, 2 and 3.
    fn switch() -> Switch {
        let mut switch = Switch::default();
        for (number, owner) in (1..).zip([A, B, C]) {
            switch.plug(port(number), owner);
        }
        switch
    }

    /// Sends one frame after the other, and says what becomes of each.
    fn check(sent: &[(u64, Mac, Mac, Forward)]) {
        let mut switch = switch();
        for (at, (from, source, destination, expected)) in sent.iter().enumerate() {
            let frame = [&destination[..], source, b"\x08\0hello"].concat();
            let found = switch.forward(port(*from), &frame);
            assert_eq!(found, *expected, "frame {at}");
        }
    }

    #[test]
    fn who_was_heard_is_sent_to_alone() {
        check(&[
            (1, A, B, Forward::Flood),
            (2, B, A, Forward::To(port(1))),
            (1, A, B, Forward::To(port(2))),
            (3, C, B, Forward::To(port(2))),
        ]);
    }

    #[test]
    fn groups_and_strangers_are_sent_to_all() {
        check(&[
            (1, A, ALL, Forward::Flood),
            (1, A, [0x33, 0x33, 0, 0, 0, 1], Forward::Flood),
            (1, A, [2, 9, 9, 9, 9, 9], Forward::Flood),
            (2, B, ALL, Forward::Flood),
        ]);
    }

    #[test]
    fn nobody_speaks_for_another() {
        check(&[
            (2, B, ALL, Forward::Flood),
            // Not in the name of B, heard or not, of a stranger, or of a group.
            (1, B, A, Forward::Forged),
            (1, C, A, Forward::Forged),
            (1, [2, 9, 9, 9, 9, 9], B, Forward::Forged),
            (1, ALL, B, Forward::Forged),
            (1, [3, 0, 0, 0, 0, 0xA], B, Forward::Forged),
            // And nothing was learned from it.
            (3, C, B, Forward::To(port(2))),
            (2, B, A, Forward::Flood),
            // A port that is not there.
            (9, A, B, Forward::Forged),
        ]);
    }

    #[test]
    fn a_frame_to_its_own_sender_goes_nowhere() {
        check(&[(1, A, A, Forward::Nowhere)]);
    }

    #[test]
    fn a_group_is_never_learned_even_of_a_port_that_was_given_one() {
        let mut switch = Switch::default();
        switch.plug(port(1), ALL);
        switch.plug(port(2), B);
        let frame = [&B[..], &ALL].concat();
        assert_eq!(switch.forward(port(1), &frame), Forward::Flood);
        assert_eq!(switch.learned(), 0);
    }

    #[test]
    fn what_is_too_short_goes_nowhere() {
        let mut switch = switch();
        let frame = [B, A].concat();
        for len in 0..12 {
            assert_eq!(switch.forward(port(1), &frame[..len]), Forward::Runt);
        }
        assert_eq!(switch.forward(port(1), &frame), Forward::Flood);
    }

    #[test]
    fn who_is_unplugged_is_forgotten() {
        let mut switch = switch();
        let to = |to: Mac, from: Mac| [to, from].concat();
        assert_eq!(switch.forward(port(2), &to(A, B)), Forward::Flood);
        assert_eq!(switch.forward(port(1), &to(B, A)), Forward::To(port(2)));
        switch.unplug(port(2));
        assert_eq!(switch.forward(port(1), &to(B, A)), Forward::Flood);
        assert_eq!(switch.forward(port(2), &to(A, B)), Forward::Forged);
        // The next life of the same guest, on a port of its own.
        switch.plug(port(4), B);
        assert_eq!(switch.forward(port(4), &to(A, B)), Forward::To(port(1)));
        assert_eq!(switch.forward(port(1), &to(B, A)), Forward::To(port(4)));
        assert_eq!(switch.ports().count(), 3);
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let mut switch = Switch::default();
        let mac = |number: u16| {
            let [high, low] = number.to_be_bytes();
            [2, 0, 0, 0, high, low]
        };
        let many = u16::try_from(LEARNED_MAX).unwrap() + 10;
        for number in 0..many {
            switch.plug(port(number.into()), mac(number));
            let frame = [ALL, mac(number)].concat();
            assert_eq!(switch.forward(port(number.into()), &frame), Forward::Flood);
        }
        assert_eq!(switch.learned(), LEARNED_MAX);
        let mut to = |number| switch.forward(port(20), &[mac(number), mac(20)].concat());
        // Those heard first are forgotten, the others are not.
        assert_eq!(to(9), Forward::Flood);
        assert_eq!(to(10), Forward::To(port(10)));
        assert_eq!(to(many - 1), Forward::To(port(u64::from(many) - 1)));
    }
}
