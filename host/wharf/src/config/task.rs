//! Tasks: what runs, how much of it, and what it is given.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use wharf_abi::boot::ARGS_MAX;
use wharf_machine::layout::{MEMORY_DEFAULT, MEMORY_MAX};
use wharf_machine::{Args, BootConfig};
use wharf_model::cell::Restart;

use super::block;
use super::claims::Claims;
use super::field::Field;
use super::findings::{Findings, quote};
use super::log;
use super::net;
use super::publish;
use super::section::{Key, Section};
use crate::cell::protocol::is_task_name;
use crate::cell::{Clones, TaskSpec};

const NAME: Key = Key::new("name", "name = \"web\"");
const IMAGE: Key = Key::new("image", "image = \"http.elf\"");
const FROM: Key = Key::new("from", "from = \"http.snap\"");
const WARM: Key = Key::new("warm", "warm = 2");
const ARGS: Key = Key::new("args", "args = [\"--greeting\", \"hello\"]");
const MEMORY: Key = Key::new("memory", "memory = \"32MiB\"");
const REPLICAS: Key = Key::new("replicas", "replicas = 2");
const WEIGHT: Key = Key::new("weight", "weight = 100");
const RESTART: Key = Key::new("restart", "restart = \"on-failure\"");
const STOP_TIMEOUT: Key = Key::new("stop-timeout", "stop-timeout = \"5s\"");
const PUBLISH: Key = Key::new("publish", "publish = [\"127.0.0.1:8080:80\"]");
const JOINS: Key = Key::new("joins", "joins = \"web\"");
const LABELS: Key = Key::new("labels", "labels = { tier = \"front\" }");
const LOG: Key = Key::new("log", "log = { file = \"web.log\" }");
const BLOCK: Key = Key::new("block", "[[task.block]]");
const NET: Key = Key::new("net", "[[task.net]]");
const KEYS: &[Key] = &[
    NAME,
    IMAGE,
    FROM,
    WARM,
    ARGS,
    MEMORY,
    REPLICAS,
    WEIGHT,
    RESTART,
    STOP_TIMEOUT,
    PUBLISH,
    JOINS,
    LABELS,
    LOG,
    BLOCK,
    NET,
];

const REPLICAS_MAX: u32 = 100;
const WEIGHT_MAX: u32 = 10_000;
/// Each is a virtual machine, and a process should not have many more than a hundred.
const WARM_MAX: u32 = 64;
const PAGE: u64 = 4096;

const WEIGHT_DEFAULT: u32 = 100;
const GRACE_DEFAULT: Duration = Duration::from_secs(5);

/// One task, as the file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// What a cell runs of it, but for its image: that is the file's word, which
    /// may mean the source of one, `#BIN` included. A snapshot is always a file.
    pub spec: TaskSpec,
}

impl Task {
    /// What a cell is to run, once the image is built.
    #[must_use]
    pub fn spec(&self, image: PathBuf) -> TaskSpec {
        TaskSpec {
            image,
            ..self.spec.clone()
        }
    }

    /// Reads a task. What is wrong with it is put down in `found`, and a default
    /// takes its place, since such a configuration is thrown away as a whole.
    pub(super) fn read(
        field: Field<'_>,
        claims: &mut Claims,
        found: &mut Findings<'_>,
    ) -> Option<Self> {
        let section = field.section("a task", KEYS, found)?;
        let name = section.require(NAME, found);
        let (image, clones) = read_origin(section, found);
        if let (Some(clones), Some(warm)) = (clones, section.get(WARM)) {
            // Machines they are, too.
            claims.replicas(clones.warm, warm.at(), found);
        }
        let (args, memory) = (section.get(ARGS), section.get(MEMORY));
        let weight = section.get(WEIGHT);
        let (restart, grace) = (section.get(RESTART), section.get(STOP_TIMEOUT));
        let (labels, log) = (section.get(LABELS), section.get(LOG));
        let replicas = read_replicas(section, field.at(), claims, found);
        let spec = TaskSpec {
            name: name
                .and_then(|it| read_name(it, claims, found))
                .unwrap_or_default(),
            image: image.and_then(|it| it.path(found)).unwrap_or_default(),
            clones,
            boot: BootConfig {
                memory: memory
                    .and_then(|it| read_memory(it, found))
                    .unwrap_or(MEMORY_DEFAULT),
                // Arguments that make none were found above, and refuse the file.
                args: args
                    .and_then(|it| read_args(it, found))
                    .and_then(|args| Args::new(args).ok())
                    .unwrap_or_default(),
                ..BootConfig::default()
            },
            replicas,
            blocks: section
                .get(BLOCK)
                .and_then(|it| block::read_all(it, claims, found))
                .unwrap_or_default(),
            nets: section
                .get(NET)
                .and_then(|it| net::read_all(it, replicas, claims, found))
                .unwrap_or_default(),
            publish: section
                .get(PUBLISH)
                .and_then(|it| publish::read_all(it, claims, found))
                .unwrap_or_default(),
            joins: section
                .get(JOINS)
                .and_then(|it| read_joins(it, claims, found)),
            weight: weight
                .and_then(|it| it.number(1..=WEIGHT_MAX, found))
                .unwrap_or(WEIGHT_DEFAULT),
            restart: restart
                .and_then(|it| read_restart(it, found))
                .unwrap_or_default(),
            grace: grace
                .and_then(|it| it.duration(found))
                .unwrap_or(GRACE_DEFAULT),
            log: log.and_then(|it| log::read(it, claims, found)),
            labels: labels
                .and_then(|it| read_labels(it, found))
                .unwrap_or_default(),
        };
        if !spec.publish.is_empty() {
            claims.publishes(&spec.name);
        }
        Some(Self { spec })
    }
}

/// The file that it is made of: an image, or a snapshot, which says all the rest.
fn read_origin<'a>(
    section: Section<'a>,
    found: &mut Findings<'_>,
) -> (Option<Field<'a>>, Option<Clones>) {
    let warm = section.get(WARM);
    let Some(from) = section.get(FROM) else {
        if let Some(warm) = warm {
            warm.wrong("needs a snapshot: write from = \"FILE\"", found);
        }
        return (section.require(IMAGE, found), None);
    };
    if let Some(image) = section.get(IMAGE) {
        image.wrong("is in the snapshot: write image or from", found);
    }
    for said in [ARGS, MEMORY]
        .into_iter()
        .filter_map(|key| section.get(key))
    {
        said.wrong(
            "is what it was when the snapshot was taken: take it out",
            found,
        );
    }
    let warm = warm.and_then(|it| it.number(0..=WARM_MAX, found));
    let clones = Clones {
        warm: warm.unwrap_or(0),
    };
    (Some(from), Some(clones))
}

/// Which task it is may come later in the file.
fn read_joins(field: Field<'_>, claims: &mut Claims, found: &mut Findings<'_>) -> Option<String> {
    let name = field.text(found)?;
    claims.joins(field, name);
    Some(name.to_owned())
}

fn read_name(field: Field<'_>, claims: &mut Claims, found: &mut Findings<'_>) -> Option<String> {
    let name = field.text(found)?;
    if is_task_name(name) {
        claims.name(field, name, found);
    } else {
        let name = quote(name);
        field.wrong(
            format!("{name} is no name: use 1 to 63 letters, digits, - and _"),
            found,
        );
    }
    Some(name.to_owned())
}

fn read_memory(field: Field<'_>, found: &mut Findings<'_>) -> Option<u64> {
    let memory = field.size(found)?;
    if memory == 0 {
        field.wrong_unlike("is nothing", found);
    } else if memory > MEMORY_MAX {
        let most = MEMORY_MAX >> 30;
        let what = format!("is more than a task can have: write at most {most}GiB");
        field.wrong_text(what, found);
    } else if !memory.is_multiple_of(PAGE) {
        let enough = memory.checked_next_multiple_of(PAGE).unwrap_or(PAGE) >> 10;
        let what = format!("is no multiple of 4KiB: write {enough}KiB");
        field.wrong_text(what, found);
    }
    Some(memory)
}

fn read_args(field: Field<'_>, found: &mut Findings<'_>) -> Option<Vec<String>> {
    let mut args = Vec::new();
    let mut len = 0_usize;
    for item in field.items(found)? {
        let Some(arg) = item.text(found) else {
            continue;
        };
        if arg.contains('\0') {
            item.wrong(
                "hold a NUL byte, which would end the argument: take it out",
                found,
            );
        }
        len = len.saturating_add(arg.len()).saturating_add(1);
        args.push(arg.to_owned());
    }
    if len > ARGS_MAX {
        let what = format!("take {len} bytes: shorten them to {ARGS_MAX}, one for the end of each");
        field.wrong(what, found);
    }
    Some(args)
}

fn read_replicas(
    section: Section<'_>,
    at: usize,
    claims: &mut Claims,
    found: &mut Findings<'_>,
) -> u32 {
    let field = section.get(REPLICAS);
    let replicas = field
        .and_then(|it| it.number(1..=REPLICAS_MAX, found))
        .unwrap_or(1);
    claims.replicas(replicas, field.map_or(at, |field| field.at()), found);
    replicas
}

fn read_restart(field: Field<'_>, found: &mut Findings<'_>) -> Option<Restart> {
    let words = &[
        ("never", Restart::Never),
        ("on-failure", Restart::OnFailure),
        ("always", Restart::Always),
    ];
    field.word(words, found)
}

fn read_labels(field: Field<'_>, found: &mut Findings<'_>) -> Option<BTreeMap<String, String>> {
    let labels = field.open_section(found)?.fields(LABELS);
    let mut read = BTreeMap::new();
    for (name, label) in labels {
        if let Some(text) = label.text(found) {
            read.insert(name.to_owned(), text.to_owned());
        }
    }
    Some(read)
}
