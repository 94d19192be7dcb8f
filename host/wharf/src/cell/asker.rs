//! The thread that does for upgrades what takes time: it reads images and asks the
//! upgrader, whose answer the supervisor must not wait for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};
use wharf_machine::image::Image;
use wharf_model::cell::TaskKey;
use wharf_model::policy::{Answer, Question, SlotName};
use wharf_policy::Slots;

use super::{CellError, TaskSpec};
use crate::device::attach;
use crate::text::{one_line, shown};

/// What it is to do.
pub(super) enum Job {
    /// Read the image that is to run, and see whether it can.
    Prepare {
        /// For the rollout of this number.
        id: u64,
        /// What is to run.
        spec: Arc<TaskSpec>,
        /// What runs, by replica.
        running: Vec<(usize, Arc<Image>)>,
    },
    /// Ask the upgrader about the upgrade to this version.
    Ask(TaskKey, Question),
}

/// What came of it.
pub(super) enum Said {
    Prepared(u64, Result<Prepared, String>),
    Answered(TaskKey, Answer),
}

/// An image that can run.
pub(super) struct Prepared {
    pub(super) image: Arc<Image>,
    /// SHA-256 of it, in hexadecimal.
    pub(super) digest: String,
    /// Those of the images that run, by replica.
    pub(super) running: BTreeMap<usize, String>,
}

/// Where jobs go. The thread ends when this is dropped.
#[derive(Debug)]
pub(super) struct Asker {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Asker {
    /// Starts the thread; also returns where its answers come.
    pub(super) fn start(slots: Arc<Slots>) -> Result<(Self, Receiver<Said>), CellError> {
        let (jobs, inbox) = unbounded();
        let (outbox, answers) = unbounded();
        let thread = std::thread::Builder::new()
            .name("asker".to_owned())
            .spawn(move || {
                for job in inbox {
                    if outbox.send(work(&slots, job)).is_err() {
                        return;
                    }
                }
            })
            .map_err(CellError::Thread)?;
        let asker = Self {
            jobs: Some(jobs),
            thread: Some(thread),
        };
        Ok((asker, answers))
    }

    pub(super) fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // It ends with this alone.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A plugin that panicked it, if one could, is no reason to.
            let _ = thread.join();
        }
    }
}

fn work(slots: &Slots, job: Job) -> Said {
    match job {
        Job::Prepare { id, spec, running } => Said::Prepared(id, prepare(slots, &spec, &running)),
        Job::Ask(new, question) => {
            Said::Answered(new, slots.slot(SlotName::Upgrader).ask(&question))
        }
    }
}

fn prepare(
    slots: &Slots,
    spec: &TaskSpec,
    running: &[(usize, Arc<Image>)],
) -> Result<Prepared, String> {
    let image = Arc::new(Image::open(&spec.image).map_err(|e| one_line(&e))?);
    // A router of the operator's own may have other ideas of who gets what.
    let strict = !slots.slot(SlotName::Router).has_plugin();
    attach::check(image.manifest(), spec.configured(), &spec.name, strict)
        .map_err(|e| one_line(&e))?;
    let digest = wharf_policy::digest(image.bytes());
    let running: BTreeMap<usize, String> = running
        .iter()
        .map(|(replica, image)| (*replica, wharf_policy::digest(image.bytes())))
        .collect();
    if running.values().all(|it| *it == digest) {
        let image = shown(&spec.image);
        let name = &spec.name;
        return Err(format!(
            "{name} runs {image} already: build it anew, or name another image"
        ));
    }
    Ok(Prepared {
        image,
        digest,
        running,
    })
}
