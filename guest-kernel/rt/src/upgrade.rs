//! Upgrade: leaving state and connections to the next version, and finding them.
//!
//! ```ignore
//! use wharf::upgrade;
//!
//! #[wharf::main(stream = ["net"], state = 1)]
//! async fn main() -> Result<(), Error> {
//!     let counter = Rc::new(Cell::new(upgrade::inherited().map_or(0, parse)));
//!     let counted = counter.clone();
//!     upgrade::on_upgrade(move |state| state.extend(counted.get().to_le_bytes()));
//!     serve(counter).await
//! }
//! ```
//!
//! When the host is about to put another version in this one's place, the runtime
//! brings the connections to rest, has the function of [`on_upgrade`] write down the
//! state, and hands both over. A guest without such a function hands over its
//! connections alone. If nothing comes of it, everything goes on as if nothing had been.
//!
//! # Connections at rest
//!
//! A connection rests while its task waits in `read`. The next version reads what came
//! since the last byte that was written: so whoever talks in requests and answers loses
//! none, be it half there. Two things follow. What a client sends of its *next* request
//! in one piece with the end of the last must not matter, and what a task knows of a
//! connection besides those bytes belongs into the state. Connections that this guest
//! made itself are not handed over.

#![expect(unsafe_code, reason = "what runs on the one vCPU needs no lock")]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use critical_section::Mutex;
use wharf_abi::upgrade::{HandOver, Rest};
use wharf_abi::{DeviceKind, Interest};
use zerocopy::IntoBytes;

use crate::{boot, hypercall, stream, time};

/// How long the runtime waits for a moment at which all connections happen to rest. After
/// that none is read from until the others have been answered.
const PATIENCE_NS: u64 = 20_000_000;

/// What writes down the state.
type Writer = Box<dyn FnMut(&mut Vec<u8>) + Send>;

static WRITER: Mutex<RefCell<Option<Writer>>> = Mutex::new(RefCell::new(None));

/// Since when the host waits for the hand-over; 0 when it does not.
static ASKED_NS: AtomicU64 = AtomicU64::new(0);

/// Whether the guest serves, by its own word.
static READY: AtomicBool = AtomicBool::new(false);

/// Returns the state that the version before this one handed over, in the format of this
/// one; `None` when there was none.
#[must_use]
pub fn inherited() -> Option<&'static [u8]> {
    let bytes = boot::inherited_bytes();
    (!bytes.is_empty()).then_some(bytes)
}

/// Has a function write down the state when another version is to take over. It is
/// called between two polls of tasks, with all connections at rest, and may be called
/// again when nothing came of it. The last one given counts.
pub fn on_upgrade(write: impl FnMut(&mut Vec<u8>) + 'static) {
    let mut writer = OneVcpu(write);
    let write: Writer = Box::new(move |state| writer.call(state));
    critical_section::with(|cs| *WRITER.borrow_ref_mut(cs) = Some(write));
}

/// Says that this guest serves, so that it can take the place of the version before it.
///
/// A guest that declares a stream device says so by itself when it first waits for a
/// connection, any other when it first waits for anything. Who does not is never put in
/// place.
pub fn ready() {
    if !READY.swap(true, Ordering::Relaxed) {
        hypercall::ready();
    }
}

/// A listener waits for its first connection.
pub(crate) fn accepts() {
    READY.store(true, Ordering::Relaxed);
}

/// What the executor's waits say besides devices.
pub(crate) fn interest() -> Interest {
    let mut starting = Interest::NONE;
    if !READY.load(Ordering::Relaxed) {
        // Asked once: who has none says by its first wait that it serves.
        if boot::has_device(DeviceKind::Stream) {
            starting = Interest::STARTING;
        } else {
            READY.store(true, Ordering::Relaxed);
        }
    }
    if is_asked() {
        starting
    } else {
        starting.union(Interest::UPGRADE)
    }
}

/// Takes in what a wait said.
pub(crate) fn hear(ready: Interest) {
    if ready.contains(Interest::UPGRADE) && !is_asked() {
        ASKED_NS.store(time::monotonic_ns().max(1), Ordering::Relaxed);
    }
}

fn is_asked() -> bool {
    ASKED_NS.load(Ordering::Relaxed) != 0
}

/// Hands over if that was asked for and everything rests; says until when the executor
/// may wait.
pub(crate) fn settle(until_ns: u64) -> u64 {
    let asked_ns = ASKED_NS.load(Ordering::Relaxed);
    if asked_ns == 0 {
        return until_ns;
    }
    let patience_ns = asked_ns.saturating_add(PATIENCE_NS);
    if time::monotonic_ns() >= patience_ns {
        stream::freeze();
    }
    let Some(resting) = stream::resting() else {
        return until_ns.min(patience_ns.max(time::monotonic_ns()));
    };
    let mut state = Vec::new();
    if let Some(mut write) = critical_section::with(|cs| WRITER.borrow_ref_mut(cs).take()) {
        write(&mut state);
        critical_section::with(|cs| {
            WRITER.borrow_ref_mut(cs).get_or_insert(write);
        });
    }
    hypercall::hand_over(&block(&resting, &state));
    // It did not come to pass.
    ASKED_NS.store(0, Ordering::Relaxed);
    stream::thaw();
    0
}

/// The block of memory that is handed over.
fn block(resting: &[(Rest, Vec<u8>)], state: &[u8]) -> Vec<u8> {
    let header = HandOver {
        // There are no more connections than the host gives.
        connections: resting.len() as u32,
        reserved: 0,
        state_len: state.len() as u64,
    };
    let mut block = Vec::from(header.as_bytes());
    for (rest, _) in resting {
        block.extend(rest.as_bytes());
    }
    for (_, unread) in resting {
        block.extend(unread);
    }
    block.extend(state);
    block
}

/// A function that only the guest's one thread of execution can reach.
struct OneVcpu<F>(F);

impl<F: FnMut(&mut Vec<u8>)> OneVcpu<F> {
    fn call(&mut self, state: &mut Vec<u8>) {
        (self.0)(state);
    }
}

// SAFETY: a guest has one vCPU and no interrupts, so nothing runs beside the code that
// uses the value.
unsafe impl<F> Send for OneVcpu<F> {}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use wharf_abi::upgrade::Rest;

    use super::block;

    #[test]
    fn a_block_is_laid_out_as_the_contract_says() {
        let rest = |port, len| Rest {
            host_port: port,
            guest_port: 80,
            unread_len: len,
            reserved: 0,
        };
        let resting = [(rest(1, 2), vec![1, 2]), (rest(2, 0), vec![])];
        let bytes = block(&resting, b"state");
        assert_eq!(bytes.len(), 16 + 2 * 16 + 2 + 5);
        assert_eq!(&bytes[..4], [2, 0, 0, 0]);
        assert_eq!(&bytes[8..16], 5_u64.to_le_bytes());
        assert_eq!(&bytes[48..], b"\x01\x02state");
    }
}
