//! The books of one stream between a guest and the network: credit, and who has
//! said that no more comes.
//!
//! A stream is a pair of byte pipes. For each, whoever receives says how much it can
//! keep, and the sender sends no more (virtio 1.2 §5.10.6.3). Counters are modulo
//! 2³², as they are in packets. What the guest says of itself is believed only as
//! far as it harms nobody but the guest.

use serde::{Deserialize, Serialize};

/// Bytes that the host keeps for the network of what a guest has sent.
pub const HOST_CREDIT: u32 = 128 << 10;

/// What the guest did that no guest may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest sent more than it had credit for")]
pub struct Overdrawn;

/// What a packet to the guest says of the host's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Bytes that the host can keep.
    pub alloc: u32,
    /// Bytes that it has passed on.
    pub forwarded: u32,
}

/// A direction that has ended, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// No more is read.
    pub receive: bool,
    /// No more is sent.
    pub send: bool,
}

impl Ends {
    /// Both.
    pub const BOTH: Self = Self {
        receive: true,
        send: true,
    };

    /// The directions that have ended in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self {
            receive: self.receive || other.receive,
            send: self.send || other.send,
        }
    }
}

/// One stream. Serialised, it goes on in another process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Bytes sent to the guest.
    sent: u32,
    /// What the guest said last: bytes that it can keep, and that it has consumed.
    guest_alloc: u32,
    guest_forwarded: u32,
    /// Bytes received from the guest.
    received: u32,
    /// Of these, passed on to the network.
    forwarded: u32,
    /// What the guest was last told of that.
    told: u32,
    /// What the guest has ended.
    guest: Ends,
    /// Whether the network has sent its last byte, and the guest knows.
    network_ended: bool,
}

impl Flow {
    /// Notes what the guest says of its side in any packet.
    pub const fn heard(&mut self, alloc: u32, forwarded: u32) {
        self.guest_alloc = alloc;
        self.guest_forwarded = forwarded;
    }

    /// Bytes that the guest can take now.
    #[must_use]
    pub const fn room(&self) -> u32 {
        if self.guest.receive {
            return 0;
        }
        // Who claims to have consumed more than it got has no room.
        let in_flight = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_alloc.saturating_sub(in_flight)
    }

    /// Books bytes sent to the guest.
    pub const fn sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Books bytes that the guest has sent.
    ///
    /// # Errors
    ///
    /// When it had no credit for them.
    pub const fn received(&mut self, bytes: u32) -> Result<(), Overdrawn> {
        let kept = self.received.wrapping_sub(self.forwarded);
        if bytes > HOST_CREDIT.saturating_sub(kept) {
            return Err(Overdrawn);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// Books bytes passed on to the network, or dropped because it takes none.
    pub const fn forwarded(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Whether the guest should be told that there is room again: it may wait for
    /// that alone.
    #[must_use]
    pub const fn has_news(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= HOST_CREDIT / 2
    }

    /// What the next packet to the guest says, which it then knows.
    pub const fn tell(&mut self) -> Credit {
        self.told = self.forwarded;
        Credit {
            alloc: HOST_CREDIT,
            forwarded: self.forwarded,
        }
    }

    /// Notes what the guest ends; what it has ended once stays so.
    pub const fn guest_ends(&mut self, ends: Ends) {
        self.guest = self.guest.union(ends);
    }

    /// What the guest has ended.
    #[must_use]
    pub const fn guest_ended(&self) -> Ends {
        self.guest
    }

    /// Notes that the guest was told of the network's last byte.
    pub const fn network_ends(&mut self) {
        self.network_ended = true;
    }

    /// Whether both directions go on, as far as anybody has said.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        !(self.guest.receive || self.guest.send || self.network_ended)
    }

    /// Whether nothing can come any more, from either side, but what is on its way:
    /// the guest is done with both directions, or with its own after the network was.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.guest.send && (self.guest.receive || self.network_ended)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Ends, Flow, HOST_CREDIT, Overdrawn};

    #[test]
    fn room_is_what_was_granted_less_what_is_on_its_way() {
        let mut flow = Flow::default();
        assert_eq!(flow.room(), 0);
        flow.heard(100, 0);
        flow.sent(60);
        assert_eq!(flow.room(), 40);
        flow.heard(100, 60);
        assert_eq!(flow.room(), 100);
        // It may take back what it granted.
        flow.heard(10, 60);
        flow.sent(10);
        flow.heard(5, 60);
        assert_eq!(flow.room(), 0);
    }

    #[test]
    fn a_guest_that_claims_to_have_read_the_future_gets_nothing() {
        let mut flow = Flow::default();
        flow.heard(u32::MAX - 1, 1);
        assert_eq!(flow.room(), 0);
    }

    #[test]
    fn who_reads_no_more_has_no_room() {
        let mut flow = Flow::default();
        flow.heard(100, 0);
        flow.guest_ends(Ends {
            receive: true,
            send: false,
        });
        assert_eq!(flow.room(), 0);
        assert!(!flow.is_over());
        flow.network_ends();
        assert!(!flow.is_over(), "it may still send");
        flow.guest_ends(Ends {
            receive: false,
            send: true,
        });
        assert!(flow.is_over());
        assert_eq!(flow.guest_ended(), Ends::BOTH);
    }

    #[test]
    fn a_guest_has_the_hosts_credit_and_no_more() {
        let mut flow = Flow::default();
        flow.received(HOST_CREDIT).unwrap();
        assert_eq!(flow.received(1), Err(Overdrawn));
        assert_eq!(flow.received(0), Ok(()));
        flow.forwarded(HOST_CREDIT / 2 - 1);
        assert!(!flow.has_news());
        flow.forwarded(1);
        assert!(flow.has_news());
        assert_eq!(flow.tell().forwarded, HOST_CREDIT / 2);
        assert!(!flow.has_news());
        assert_eq!(flow.received(HOST_CREDIT / 2 + 1), Err(Overdrawn));
        flow.received(HOST_CREDIT / 2).unwrap();
    }

    proptest! {
        /// Whatever is sent and read, in whatever pieces and however often the
        /// counters wrap: neither side ever has to keep more than it granted.
        #[test]
        fn nobody_gets_more_than_it_can_keep(
            start in any::<u32>(),
            steps in prop::collection::vec((any::<u16>(), any::<u16>(), any::<u32>(), any::<u16>()), 1..200),
        ) {
            let mut flow = Flow { sent: start, guest_forwarded: start, received: start,
                forwarded: start, told: start, ..Flow::default() };
            let (mut guest_keeps, mut host_keeps, mut read) = (0_u64, 0_u64, start);
            let alloc = 50_000;
            flow.heard(alloc, read);
            for (to_guest, from_guest, consumed, forwarded) in steps {
                let bytes = u32::from(to_guest).min(flow.room());
                flow.sent(bytes);
                guest_keeps += u64::from(bytes);
                prop_assert!(guest_keeps <= u64::from(alloc));
                let consumed = u64::from(consumed).min(guest_keeps);
                guest_keeps -= consumed;
                read = read.wrapping_add(u32::try_from(consumed).unwrap());
                flow.heard(alloc, read);

                if flow.received(u32::from(from_guest)).is_ok() {
                    host_keeps += u64::from(from_guest);
                }
                prop_assert!(host_keeps <= u64::from(HOST_CREDIT));
                let forwarded = u64::from(forwarded).min(host_keeps);
                flow.forwarded(u32::try_from(forwarded).unwrap());
                host_keeps -= forwarded;
            }
        }
    }
}
