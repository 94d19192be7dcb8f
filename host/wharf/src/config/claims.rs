//! What only one task can have, and what all of them share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Component, Path, PathBuf};

use super::field::Field;
use super::findings::{Findings, quote};
use crate::cell::LogFile;
use crate::net::Publish;

/// Most virtual machines of a cell. Each that is made registers a notifier with
/// the process's address space, and KVM asks all of them at every change of it.
const REPLICAS_MAX: u32 = 128;

/// What the tasks that were read so far have taken, and where in the file.
#[derive(Default)]
pub(super) struct Claims {
    names: BTreeMap<String, usize>,
    logs: BTreeMap<PathBuf, usize>,
    /// Disks' files, and whether one is written.
    disks: BTreeMap<PathBuf, (usize, bool)>,
    taps: BTreeMap<String, usize>,
    ports: BTreeMap<(bool, u16), BTreeMap<IpAddr, usize>>,
    /// Tasks with published ports.
    publishing: BTreeSet<String>,
    /// Whose ports others want to share, and where that is said.
    joins: Vec<(String, usize)>,
    replicas: u32,
}

impl Claims {
    pub(super) fn name(&mut self, field: Field<'_>, name: &str, found: &mut Findings<'_>) {
        if let Some(&at) = self.names.get(name) {
            let line = found.line(at);
            let what = format!("{} is taken at line {line}: choose another", quote(name));
            field.wrong(what, found);
        } else {
            self.names.insert(name.to_owned(), field.at());
        }
    }

    /// Two writers of one file would rename it under each other, and one whose file is
    /// another's full one would lose it.
    pub(super) fn log(&mut self, field: Field<'_>, log: &LogFile, found: &mut Findings<'_>) {
        let file = normal(&log.file);
        let full = (1..=log.keep).map(|number| {
            let mut name = file.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        });
        let files: Vec<PathBuf> = std::iter::once(file.clone()).chain(full).collect();
        if let Some(&at) = files.iter().find_map(|file| self.logs.get(file)) {
            let line = found.line(at);
            let what = format!("is another task's log at line {line}: name another");
            field.wrong(what, found);
        } else {
            self.logs
                .extend(files.into_iter().map(|file| (file, field.at())));
        }
    }

    /// Two that write one disk would ruin it for each other, and for who reads it.
    pub(super) fn disk(
        &mut self,
        field: Field<'_>,
        file: &Path,
        writes: bool,
        found: &mut Findings<'_>,
    ) {
        let file = normal(file);
        match self.disks.get(&file) {
            Some(&(at, written)) if written || writes => {
                let line = found.line(at);
                let what = format!(
                    "is another device's at line {line}, and one of them writes: name another \
                     file, or write mode = \"ro\" or \"cow\" at both"
                );
                field.wrong(what, found);
            }
            _ => {
                self.disks.insert(file, (field.at(), writes));
            }
        }
    }

    /// An interface has one other end.
    pub(super) fn tap(&mut self, field: Field<'_>, tap: &str, found: &mut Findings<'_>) {
        if let Some(&at) = self.taps.get(tap) {
            let (quoted, line) = (quote(tap), found.line(at));
            let what =
                format!("{quoted} is another device's at line {line}: name another interface");
            field.wrong(what, found);
        } else {
            self.taps.insert(tap.to_owned(), field.at());
        }
    }

    /// Replicas of one task do not meet here: they share its ports.
    pub(super) fn port(&mut self, field: Field<'_>, publish: Publish, found: &mut Findings<'_>) {
        let (ip, port) = (publish.address.ip(), publish.address.port());
        let any: IpAddr = match ip {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let taken = self.ports.entry((ip.is_ipv6(), port)).or_default();
        let clash = if ip == any {
            taken.iter().next()
        } else {
            taken
                .get_key_value(&ip)
                .or_else(|| taken.get_key_value(&any))
        };
        if let Some((_, &at)) = clash {
            let (address, line) = (publish.address, found.line(at));
            let what = format!("{address} is taken at line {line}: choose another port");
            field.wrong(what, found);
        } else {
            taken.insert(ip, field.at());
        }
    }

    pub(super) fn publishes(&mut self, name: &str) {
        self.publishing.insert(name.to_owned());
    }

    pub(super) fn joins(&mut self, field: Field<'_>, name: &str) {
        self.joins.push((name.to_owned(), field.at()));
    }

    /// Looks at what only all tasks together tell.
    pub(super) fn finish(&self, found: &mut Findings<'_>) {
        for (name, at) in &self.joins {
            if !self.publishing.contains(name) {
                let named = quote(name);
                let what = format!("joins {named} is no task that publishes a port: name one");
                found.add(*at, what);
            }
        }
    }

    /// Counts replicas; `at` is where fewer could be asked for.
    pub(super) fn replicas(&mut self, count: u32, at: usize, found: &mut Findings<'_>) {
        let fitted = self.replicas <= REPLICAS_MAX;
        self.replicas = self.replicas.saturating_add(count);
        if fitted && self.replicas > REPLICAS_MAX {
            let all = self.replicas;
            let what = format!(
                "replicas come to {all} in all: lower them to {REPLICAS_MAX}, \
                 since KVM's notifier cost grows with the machines of a process"
            );
            found.add(at, what);
        }
    }
}

/// The path without `.` and `..`, as far as its text tells.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(normal.components().next_back(), Some(Component::Normal(_))) =>
            {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal
}
