//! Snapshots: a guest frozen between two of its turns, and written while it goes on.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};
use wharf_machine::snapshot::Room;
use wharf_model::cell::{State, TaskKey};

use super::Supervisor;
use crate::cell::events::EventLog;
use crate::cell::protocol::{EventKind, NoSuchTask, Reply, Selector, SnapshotStatus};
use crate::cell::worker::{Frozen, Mailbox, ToWorker};
use crate::text::{one_line, shown};
use crate::units::nanos;

/// Snapshots that are written at a time: each is a guest's memory once more.
const WRITERS_MAX: usize = 4;

/// Most memory that is made ready for a guest before it stands still.
const ROOM_MAX: u64 = 64 << 20;

/// The threads that write.
#[derive(Default)]
pub(super) struct Writers(Vec<JoinHandle<()>>);

impl Writers {
    /// Whether any is not done.
    pub(super) fn is_any_at_work(&self) -> bool {
        self.0.iter().any(|thread| !thread.is_finished())
    }

    /// Waits until all have written.
    pub(super) fn join(self) {
        for thread in self.0 {
            // One that panicked said so, and has written nothing under its name.
            let _ = thread.join();
        }
    }
}

impl Supervisor {
    /// Has a replica frozen, and written by a thread of its own, which tells who asked:
    /// a disk may take its time.
    pub(super) fn snapshot(&mut self, selector: Selector, file: PathBuf, reply: &Sender<Reply>) {
        let tell = |answer| {
            // Who asked may have gone.
            let _ = reply.send(answer);
        };
        let found = self.find(&selector);
        let (replica, member) = match found.as_slice() {
            [] => return tell(Reply::Refused(NoSuchTask { selector })),
            [replica] => match self.members.get(*replica) {
                Some(member) => (*replica, member),
                None => return,
            },
            all => {
                let (name, count) = (&selector.name, all.len());
                let reason = format!("{name} has {count} replicas: name one, such as {name}.0");
                return tell(Reply::Denied(reason));
            }
        };
        let State::Up { worker, .. } = self.model.state(replica) else {
            let reason = format!("{} does not run: start it first", member.name());
            return tell(Reply::Denied(reason));
        };
        self.writers.0.retain(|thread| !thread.is_finished());
        if self.writers.0.len() >= WRITERS_MAX {
            let reason = format!("{WRITERS_MAX} snapshots are being written: try again later");
            return tell(Reply::Denied(reason));
        }
        let key = self.model.key(replica);
        let Some((mailbox, _)) = self.workers.0.get(worker) else {
            return;
        };
        let work = Work {
            key,
            mailbox: mailbox.clone(),
            room: member.spec.boot.memory.min(ROOM_MAX),
            task: member.name(),
            file,
            events: Arc::clone(&self.events),
        };
        let answer = reply.clone();
        let started = std::thread::Builder::new()
            .name("snapshot".to_owned())
            .spawn(move || {
                let done = work.done();
                let _ = answer.send(done.map_or_else(Reply::Denied, Reply::Snapshot));
            });
        match started {
            Ok(thread) => self.writers.0.push(thread),
            Err(error) => tell(Reply::Denied(format!("cannot start a thread: {error}"))),
        }
    }
}

/// One snapshot.
struct Work {
    key: TaskKey,
    mailbox: Mailbox,
    /// Bytes of memory to have ready.
    room: u64,
    task: String,
    file: PathBuf,
    events: Arc<EventLog>,
}

impl Work {
    /// Has the guest frozen, and writes it.
    fn done(self) -> Result<SnapshotStatus, String> {
        let start = Instant::now();
        let (frozen, is_frozen) = bounded(1);
        let room = Room::new(self.room);
        // Wherever it has gone meanwhile, this goes after it.
        self.mailbox.send(ToWorker::Save(self.key, room, frozen));
        let frozen: Result<Result<Frozen, String>, _> = is_frozen.recv();
        let frozen = frozen.map_err(|_| format!("{} has ended meanwhile", self.task))?;
        let frozen = frozen.map_err(|reason| format!("{}: {reason}", self.task))?;
        let written = frozen.saved.write_to(&frozen.image, &self.file);
        written.map_err(|e| one_line(&e))?;
        let file = shown(&self.file);
        let pause = frozen.pause.as_micros();
        let detail = format!("into {file}, stood still for {pause} us");
        let (task, generation) = (self.task.clone(), self.key.generation);
        let kind = EventKind::Snapshotted;
        self.events.add(Some(task), generation, kind, detail);
        Ok(SnapshotStatus {
            task: self.task,
            generation,
            file: self.file.display().to_string(),
            memory_bytes: frozen.saved.resident(),
            pause_ns: nanos(frozen.pause),
            took_ns: nanos(start.elapsed()),
        })
    }
}
