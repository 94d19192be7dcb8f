//! A worker's part in an upgrade: two lives of a replica beside each other, and the
//! moment at which the later one takes the place of the earlier.
//!
//! Both are on one worker for as long as that takes, so that the moment is one: nobody
//! else sees a time with both or with neither.

use std::time::{Duration, Instant};

use wharf_machine::Resting;
use wharf_model::Event;
use wharf_model::cell::TaskKey;

use super::{FromWorker, Live, Worker};
use crate::cell::meters::Activity;
use crate::net::Share;
use crate::text::one_line;

/// What a guest is in an upgrade.
pub(super) enum Role {
    /// It is to take another's place.
    Heir {
        /// Whether it was said that it serves.
        is_ready: bool,
    },
    /// Another is to take its place.
    Old {
        /// When it handed over, and what of its connections.
        handed: Option<(Instant, Vec<Resting>)>,
    },
}

/// What became of a hand-over.
#[derive(Debug)]
pub(in crate::cell) enum Handed {
    /// The guest's state; it waits for what becomes of it.
    State(Vec<u8>),
    /// It is none of those that hand over, and goes on.
    Nothing,
    /// It gave what cannot be taken, and goes on.
    Failed(String),
}

/// What a cut-over was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cell) struct Cut {
    /// Connections that went over.
    pub(in crate::cell) connections: u32,
    /// From when the old one stood still until the new one had them.
    pub(in crate::cell) pause: Duration,
}

impl Worker {
    /// Asks a guest to hand over.
    pub(super) fn ask_hand_over(&mut self, key: TaskKey) {
        let Some(live) = self.guests.get_mut(&key) else {
            return;
        };
        live.role = Some(Role::Old { handed: None });
        if live.guest().task().hands_over() {
            live.hear(Event::Upgrade);
            self.wake(key);
        } else {
            self.tell(FromWorker::HandedOver(key, Handed::Nothing));
        }
    }

    /// Begins a guest that was made to inherit; on its wires, when it is to run beside
    /// the one before it.
    pub(super) fn begin(&mut self, key: TaskKey, state: &[u8], is_beside: bool) {
        let Some(live) = self.guests.get_mut(&key) else {
            return;
        };
        if is_beside {
            live.guest().machine.own_wires();
        }
        match live.guest().machine.inherit(state) {
            Ok(()) => {
                self.watch.add(key, live.device_fds());
                self.wake(key);
            }
            Err(error) => {
                let reason = one_line(&error);
                live.guest().give_up(reason);
                live.hear(Event::Fault);
                self.wake(key);
            }
        }
    }

    /// Has a guest go on that was asked to hand over.
    pub(super) fn resume(&mut self, key: TaskKey) {
        if let Some(live) = self.guests.get_mut(&key) {
            if let Some(Role::Old { handed: Some(_) }) = live.role.take() {
                self.watch.add(key, live.device_fds());
                live.has_news();
            }
            live.hear(Event::Resume);
            self.wake(key);
        }
    }

    /// Puts a guest that serves in the place of the one before it, which is no more.
    pub(super) fn cut_over(&mut self, old: TaskKey, new: TaskKey) {
        let Some(heir) = self.guests.get_mut(&new) else {
            return;
        };
        if let Err(error) = heir.guest().machine.own_disks() {
            let reason = format!("its disk cannot be put in order: {error}");
            self.tell(FromWorker::CutOver(new, Err(reason)));
            return;
        }
        heir.role = None;
        heir.set_share(Share::ALL);
        let mut cut = Cut::default();
        if let Some(mut live) = self.remove(old) {
            live.set_share(0);
            let handed = match live.role.take() {
                Some(Role::Old { handed }) => handed,
                _ => None,
            };
            let since = handed.as_ref().map(|(since, _)| *since);
            let resting = handed.map_or_else(Vec::new, |(_, resting)| resting);
            let moved = live.guest().machine.give_streams(resting);
            cut.connections = u32::try_from(moved.len()).unwrap_or(u32::MAX);
            if let Some(heir) = self.guests.get_mut(&new) {
                heir.guest().machine.take_streams(moved);
            }
            cut.pause = since.map_or(Duration::ZERO, |since| since.elapsed());
            live.release_devices();
            // Closing a VM takes a while, which the new one need not wait for.
            self.dead.push(live);
        }
        if let Some(heir) = self.guests.get_mut(&new) {
            // The one before it is off them.
            heir.guest().machine.own_wires();
            heir.has_news();
        }
        self.wake(new);
        self.shared.board.knock();
        self.tell(FromWorker::CutOver(new, Ok(cut)));
    }

    /// Tells what a guest in an upgrade said in the turn that is over.
    pub(super) fn report_role(&mut self, key: TaskKey) {
        let Some(live) = self.guests.get_mut(&key) else {
            return;
        };
        let legacy = live.guest().take_legacy();
        let is_ready = live.guest().task().is_ready();
        let said = match &mut live.role {
            Some(Role::Heir { is_ready: told }) if is_ready && !*told => {
                *told = true;
                FromWorker::Ready(key)
            }
            Some(Role::Old { handed }) => match legacy {
                Some(Ok(legacy)) => {
                    *handed = Some((Instant::now(), legacy.connections));
                    // Nothing more comes to it, unless it goes on.
                    self.watch.remove(key, live.device_fds());
                    FromWorker::HandedOver(key, Handed::State(legacy.state))
                }
                Some(Err(bad)) => FromWorker::HandedOver(key, Handed::Failed(bad.to_string())),
                None => return,
            },
            _ => return,
        };
        self.tell(said);
    }

    /// Whether another life of the replica is here: neither leaves the other.
    pub(super) fn is_beside_another(&self, key: TaskKey) -> bool {
        let of_replica = |generation| TaskKey { generation, ..key };
        let lives = self.guests.range(of_replica(0)..=of_replica(u64::MAX));
        lives.count() > 1
    }

    /// Takes in a guest that is not to run yet.
    pub(super) fn hold(&mut self, mut live: Live) {
        let key = live.key;
        live.is_parked = true;
        live.shows(Activity::Waiting);
        self.queue.insert(key, live.weight());
        self.guests.insert(key, live);
    }
}
