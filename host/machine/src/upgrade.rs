//! What a guest hands over: its block, read once, checked, owned.

use wharf_abi::upgrade::{CONNECTIONS_MAX, HandOver, Rest, STATE_MAX, UNREAD_MAX};
use zerocopy::FromBytes;

/// What one generation of a task leaves to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Legacy {
    /// Its state.
    pub state: Vec<u8>,
    /// Its connections that are at rest.
    pub connections: Vec<Resting>,
}

/// A connection at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resting {
    /// Its port on the host's side.
    pub host_port: u32,
    /// Its port on the guest's.
    pub guest_port: u32,
    /// What came for it and was not read.
    pub unread: Vec<u8>,
}

/// Why a block is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLegacy {
    /// It says that it is longer or shorter than it is, or has a bit set that has no
    /// meaning.
    #[error("what it hands over is not laid out as the contract says")]
    Malformed,
    /// More state than may be handed over.
    #[error("its state has {len} bytes, and the most is {STATE_MAX}: let it hand over less")]
    State {
        /// Its bytes.
        len: u64,
    },
    /// More connections than a guest has.
    #[error("it hands over {count} connections, and the most is {CONNECTIONS_MAX}")]
    Connections {
        /// How many.
        count: u32,
    },
    /// More than the host keeps.
    #[error("it hands over {len} unread bytes, and the most is {UNREAD_MAX}")]
    Unread {
        /// Bytes of all connections together.
        len: u64,
    },
}

impl Legacy {
    /// Takes a block apart.
    ///
    /// # Errors
    ///
    /// [`BadLegacy`].
    pub fn parse(block: &[u8]) -> Result<Self, BadLegacy> {
        use BadLegacy::Malformed;
        let (header, mut rest) = HandOver::read_from_prefix(block).map_err(|_| Malformed)?;
        let HandOver {
            connections: count,
            reserved,
            state_len,
        } = header;
        if reserved != 0 {
            return Err(Malformed);
        }
        if state_len > STATE_MAX {
            return Err(BadLegacy::State { len: state_len });
        }
        if count > CONNECTIONS_MAX {
            return Err(BadLegacy::Connections { count });
        }
        let mut entries = Vec::new();
        let mut unread_len = 0_u64;
        for _ in 0..count {
            let (entry, behind) = Rest::read_from_prefix(rest).map_err(|_| Malformed)?;
            if entry.reserved != 0 {
                return Err(Malformed);
            }
            unread_len = unread_len.saturating_add(entry.unread_len.into());
            entries.push(entry);
            rest = behind;
        }
        if unread_len > UNREAD_MAX {
            return Err(BadLegacy::Unread { len: unread_len });
        }
        let mut connections = Vec::with_capacity(entries.len());
        for entry in entries {
            let len = usize::try_from(entry.unread_len).map_err(|_| Malformed)?;
            let (unread, behind) = rest.split_at_checked(len).ok_or(Malformed)?;
            connections.push(Resting {
                host_port: entry.host_port,
                guest_port: entry.guest_port,
                unread: unread.to_vec(),
            });
            rest = behind;
        }
        if u64::try_from(rest.len()) != Ok(state_len) {
            return Err(Malformed);
        }
        Ok(Self {
            state: rest.to_vec(),
            connections,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wharf_abi::upgrade::{HandOver, Rest, STATE_MAX, UNREAD_MAX};
    use zerocopy::IntoBytes;

    use super::{BadLegacy, Legacy, Resting};

    fn block(legacy: &Legacy) -> Vec<u8> {
        let header = HandOver {
            connections: legacy.connections.len() as u32,
            reserved: 0,
            state_len: legacy.state.len() as u64,
        };
        let mut bytes = header.as_bytes().to_vec();
        for it in &legacy.connections {
            let rest = Rest {
                host_port: it.host_port,
                guest_port: it.guest_port,
                unread_len: it.unread.len() as u32,
                reserved: 0,
            };
            bytes.extend(rest.as_bytes());
        }
        for it in &legacy.connections {
            bytes.extend(&it.unread);
        }
        bytes.extend(&legacy.state);
        bytes
    }

    #[test]
    fn what_is_more_than_may_be_is_named() {
        let header = |connections, state_len| HandOver {
            connections,
            reserved: 0,
            state_len,
        };
        for (header, bad) in [
            (
                header(0, STATE_MAX + 1),
                BadLegacy::State { len: STATE_MAX + 1 },
            ),
            (header(0, u64::MAX), BadLegacy::State { len: u64::MAX }),
            (header(1025, 0), BadLegacy::Connections { count: 1025 }),
            (
                header(u32::MAX, 0),
                BadLegacy::Connections { count: u32::MAX },
            ),
            (header(1, 0), BadLegacy::Malformed),
            (header(0, 1), BadLegacy::Malformed),
        ] {
            assert_eq!(Legacy::parse(header.as_bytes()), Err(bad), "{header:?}");
        }
        let mut two = header(2, 0).as_bytes().to_vec();
        for _ in 0..2 {
            let rest = Rest {
                unread_len: u32::MAX,
                ..Rest::default()
            };
            two.extend(rest.as_bytes());
        }
        let len = 2 * u64::from(u32::MAX);
        assert!(len > UNREAD_MAX);
        assert_eq!(Legacy::parse(&two), Err(BadLegacy::Unread { len }));
    }

    proptest! {
        #[test]
        fn a_block_is_what_was_put_into_it_and_nothing_shorter_or_longer_is(
            state in prop::collection::vec(any::<u8>(), 0..300),
            unread in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..5),
        ) {
            let connections = unread.into_iter().zip(7..).map(|(unread, port)| Resting {
                host_port: port,
                guest_port: 80,
                unread,
            });
            let legacy = Legacy { state, connections: connections.collect() };
            let mut bytes = block(&legacy);
            prop_assert_eq!(Legacy::parse(&bytes), Ok(legacy));
            bytes.push(0);
            prop_assert_eq!(Legacy::parse(&bytes), Err(BadLegacy::Malformed));
            bytes.truncate(bytes.len() - 2);
            prop_assert_eq!(Legacy::parse(&bytes), Err(BadLegacy::Malformed));
        }

        #[test]
        fn hostile_blocks_are_refused_or_bounded(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(legacy) = Legacy::parse(&bytes) {
                prop_assert!(legacy.state.len() <= bytes.len());
            }
        }
    }
}
