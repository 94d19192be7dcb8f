//! What a cell is started with: owned, serialisable values, which a configuration
//! makes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wharf_machine::BootConfig;
use wharf_model::cell::Restart;
use wharf_model::policy::SlotName;
use wharf_policy::SlotConfig;

use crate::device::Block;
use crate::device::attach::Configured;
use crate::net::{NetDevice, Publish};
use crate::path;

/// What a cell is to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellConfig {
    /// Worker threads, at least one.
    pub workers: u32,
    /// The tasks, in the order in which they start. They stop in the other.
    pub tasks: Vec<TaskSpec>,
    /// The plugins that decide from the start on.
    pub policies: Vec<PolicySpec>,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Its name, unique in the cell.
    pub name: String,
    /// Its image's file, which is read again at each start.
    #[serde(with = "path")]
    pub image: PathBuf,
    /// When that file is a snapshot, whose clones its lives are: what boots them is in it.
    pub clones: Option<Clones>,
    /// Memory and arguments.
    pub boot: BootConfig,
    /// How many of it, at least one.
    pub replicas: u32,
    /// Weight in the scheduler, 1 to 10 000.
    pub weight: u32,
    /// When it is started again.
    pub restart: Restart,
    /// How long it has to end by itself when it is told to stop.
    pub grace: Duration,
    /// What its block devices can be attached to.
    pub blocks: Vec<Block>,
    /// What its devices for frames are attached to.
    pub nets: Vec<NetDevice>,
    /// Its ports that can be reached from outside.
    pub publish: Vec<Publish>,
    /// The task whose published ports lead to this one as well: its next version, or
    /// another that does the same.
    pub joins: Option<String>,
    /// Where its console goes besides the ring.
    pub log: Option<LogFile>,
    /// The operator's words about it.
    pub labels: BTreeMap<String, String>,
}

impl TaskSpec {
    /// What goes with what its image declares.
    #[must_use]
    pub fn configured(&self) -> Configured<'_> {
        Configured {
            blocks: &self.blocks,
            nets: &self.nets,
            publish: &self.publish,
            joins: self.joins.as_deref(),
        }
    }
}

/// A task's lives go on where a snapshot was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clones {
    /// How many are kept ready, so that a start need not make one.
    pub warm: u32,
}

/// A file that console output is appended to. At `size` it is renamed to
/// `file.1`, which was renamed to `file.2` before, and so on up to `keep`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFile {
    /// The file.
    #[serde(with = "path")]
    pub file: PathBuf,
    /// Bytes at which it is full.
    pub size: u64,
    /// Full files that are kept.
    pub keep: u32,
}

/// A plugin that a slot begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySpec {
    /// The slot.
    pub slot: SlotName,
    /// The component's file.
    #[serde(with = "path")]
    pub plugin: PathBuf,
    /// What it is configured with.
    pub settings: Vec<(String, String)>,
    /// How long a question may take, and who answers when it cannot.
    pub config: SlotConfig,
}
