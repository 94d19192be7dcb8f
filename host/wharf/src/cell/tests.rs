//! What crosses a cell's border survives the crossing.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Debug;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use wharf_machine::{Args, BootConfig};
use wharf_model::cell::Restart;
use wharf_model::policy::SlotName;
use wharf_policy::{OnFault, SlotConfig};

use super::console::Piece;
use super::protocol::{
    Beside, Command, Event, EventKind, HandoverStatus, NoSuchTask, Reply, SnapshotStatus,
    TaskState, TaskStatus, UpgradeState, UpgradeStatus,
};
use super::{CellConfig, Clones, LogFile, PolicySpec, TaskSpec};
use crate::device::{Block, BlockMode, Medium};
use crate::net::Publish;

/// Text with whatever a format may trip over.
const AWKWARD: &str = "\"a\\b\n\0é\u{1F980}\u{feff}";

fn there_and_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) -> Value {
    let json = serde_json::to_string(value).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), value, "{json}");
    serde_json::from_str(&json).unwrap()
}

/// Checks values of an enum, which have to be of all its variants.
fn all_there_and_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(values: &[T]) {
    let name = |json: Value| match json {
        Value::String(name) => name,
        other => other.as_object().unwrap().keys().next().unwrap().clone(),
    };
    let seen: BTreeSet<_> = values.iter().map(there_and_back).map(name).collect();
    // Derived from the type: unknown variant `?`, expected one of `a`, `b`, `c`
    let error = serde_json::from_str::<T>("\"?\"").unwrap_err().to_string();
    let variants = error.split('`').skip(3).step_by(2).map(str::to_owned);
    assert_eq!(seen, variants.collect(), "{error}");
}

fn status(state: TaskState) -> TaskStatus {
    TaskStatus {
        name: "web".to_owned(),
        index: u32::MAX,
        generation: u64::MAX,
        state,
        image: AWKWARD.to_owned(),
        memory_bytes: u64::MAX,
        run_ns: u64::MAX,
        exits: 1 << 53 | 1,
        console_bytes: 0,
        connections: 0,
        connections_total: 0,
        connection_errors: 0,
        received_bytes: 0,
        sent_bytes: 0,
        received_frames_dropped: 0,
        sent_frames_dropped: 0,
        restarts: 1,
        exit_status: Some(139),
        weight: 10_000,
        share: 100,
        beside: Some(Beside::Last),
        worker: None,
        reason: Some(AWKWARD.to_owned()),
    }
}

fn upgrade(state: UpgradeState) -> UpgradeStatus {
    UpgradeStatus {
        id: u64::MAX,
        task: "web.1".parse().unwrap(),
        from: AWKWARD.to_owned(),
        to: String::new(),
        state,
        step: Some(AWKWARD.to_owned()),
        replicas: 2,
        done: 1,
        connections: u32::MAX,
        state_bytes: 0,
        pause_ns: 1,
        reason: None,
    }
}

fn task(restart: Restart) -> TaskSpec {
    TaskSpec {
        name: "web".to_owned(),
        // Latin-1, from before all was UTF-8.
        image: Path::new(OsStr::from_bytes(b"/caf\xe9/web.elf")).to_owned(),
        clones: Some(Clones { warm: u32::MAX }),
        boot: BootConfig {
            memory: u64::MAX,
            args: Args::new(["", "--greeting", "\"é\\\n", ""]).unwrap(),
            generation: u64::MAX,
            is_heir: true,
        },
        replicas: 2,
        weight: 100,
        restart,
        grace: Duration::new(u64::MAX, 999_999_999),
        log: Some(LogFile {
            file: "web.log".into(),
            size: u64::MAX,
            keep: 0,
        }),
        joins: Some("other".to_owned()),
        nets: Vec::new(),
        publish: vec![Publish {
            address: "[::1]:8080".parse().unwrap(),
            guest_port: 80,
        }],
        labels: BTreeMap::from([(AWKWARD.to_owned(), String::new())]),
        blocks: media()
            .map(|medium| Block {
                device: "data".to_owned(),
                medium,
            })
            .to_vec(),
    }
}

fn media() -> [Medium; 2] {
    [
        Medium::File {
            file: Path::new(OsStr::from_bytes(b"/caf\xe9/data.img")).to_owned(),
            size: Some(u64::MAX),
            mode: BlockMode::CopyOnWrite,
        },
        Medium::Memory { size: 512 },
    ]
}

fn policy(slot: SlotName, on_fault: OnFault) -> PolicySpec {
    PolicySpec {
        slot,
        plugin: Path::new(OsStr::from_bytes(b"\xff.wasm")).to_owned(),
        settings: vec![(AWKWARD.to_owned(), AWKWARD.to_owned())],
        config: SlotConfig {
            deadline: Duration::from_nanos(1),
            on_fault,
        },
    }
}

#[test]
fn every_command_survives() {
    all_there_and_back(&[
        Command::Tasks,
        Command::Stop("web".parse().unwrap()),
        Command::Restart("web.4294967295".parse().unwrap()),
        Command::Upgrade {
            selector: "web.0".parse().unwrap(),
            image: Path::new(OsStr::from_bytes(b"/caf\xe9/web.elf")).to_owned(),
        },
        Command::Rollback("web".parse().unwrap()),
        Command::Upgrades,
        Command::Snapshot {
            selector: "web.0".parse().unwrap(),
            file: Path::new(OsStr::from_bytes(b"/caf\xe9/web.snap")).to_owned(),
        },
        Command::HandOver {
            program: Path::new(OsStr::from_bytes(b"/x/\xff")).to_owned(),
        },
        Command::Down,
    ]);
}

#[test]
fn every_reply_survives() {
    let states = [
        TaskState::Starting,
        TaskState::Ready,
        TaskState::Running,
        TaskState::Waiting,
        TaskState::Stopped,
        TaskState::Faulted,
    ];
    all_there_and_back(&states);
    let upgrades = [
        UpgradeState::Running,
        UpgradeState::Kept,
        UpgradeState::RolledBack,
        UpgradeState::Refused,
    ];
    all_there_and_back(&upgrades);
    all_there_and_back(&[Beside::Next, Beside::Last]);
    all_there_and_back(&[
        Reply::Tasks(states.map(status).to_vec()),
        Reply::Tasks(Vec::new()),
        Reply::Begun,
        Reply::Upgrading(upgrade(UpgradeState::Running)),
        Reply::Upgrades(upgrades.map(upgrade).to_vec()),
        Reply::Snapshot(SnapshotStatus {
            task: AWKWARD.to_owned(),
            generation: u64::MAX,
            file: AWKWARD.to_owned(),
            memory_bytes: u64::MAX,
            pause_ns: 0,
            took_ns: u64::MAX,
        }),
        Reply::HandedOver(HandoverStatus {
            pid: u32::MAX,
            version: AWKWARD.to_owned(),
            guests: 1,
            connections: u32::MAX,
            pause_median_ns: u64::MAX,
            pause_max_ns: 0,
            took_ns: 1,
        }),
        Reply::Denied(AWKWARD.to_owned()),
        Reply::Refused(NoSuchTask {
            selector: "web.1".parse().unwrap(),
        }),
    ]);
}

#[test]
fn every_event_and_piece_of_a_console_survives() {
    all_there_and_back(&EventKind::ALL);
    for kind in EventKind::ALL {
        for task in [None, Some("policy.router".to_owned())] {
            there_and_back(&Event {
                seq: u64::MAX,
                time_ns: u64::MAX,
                task,
                generation: 0,
                kind,
                detail: AWKWARD.to_owned(),
            });
        }
    }
    there_and_back(&Piece {
        start: u64::MAX,
        bytes: (0..=u8::MAX).collect(),
    });
}

#[test]
fn what_a_cell_is_started_with_survives() {
    let restarts = [Restart::Never, Restart::OnFailure, Restart::Always];
    let slots = [SlotName::Scheduler, SlotName::Router, SlotName::Upgrader];
    let on_faults = [OnFault::BuiltIn, OnFault::Deny];
    all_there_and_back(&restarts);
    all_there_and_back(&slots);
    all_there_and_back(&on_faults);
    all_there_and_back(&media());
    let modes = [
        BlockMode::ReadWrite,
        BlockMode::ReadOnly,
        BlockMode::CopyOnWrite,
    ];
    all_there_and_back(&modes);
    let policies = slots.map(|slot| on_faults.map(|on_fault| policy(slot, on_fault)));
    let bare = TaskSpec {
        clones: None,
        boot: BootConfig::default(),
        log: None,
        labels: BTreeMap::new(),
        blocks: Vec::new(),
        nets: Vec::new(),
        publish: Vec::new(),
        joins: None,
        ..task(Restart::Never)
    };
    there_and_back(&CellConfig {
        workers: u32::MAX,
        tasks: restarts.map(task).into_iter().chain([bare]).collect(),
        policies: policies.concat(),
    });
}

#[test]
fn what_no_cell_may_be_told_does_not_get_in() {
    for command in [
        r#"{"stop":"a b"}"#,
        r#"{"stop":"web.x"}"#,
        r#"{"stop":""}"#,
        r#"{"stop":{"name":"web"}}"#,
        r#""stop""#,
    ] {
        let refused = serde_json::from_str::<Command>(command);
        assert!(refused.is_err(), "{command}");
    }
    let long = "x".repeat(1 << 20);
    for args in [vec!["a\0b"], vec![long.as_str()]] {
        let json = serde_json::to_string(&args).unwrap();
        assert!(serde_json::from_str::<Args>(&json).is_err());
    }
}
