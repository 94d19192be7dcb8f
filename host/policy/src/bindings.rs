//! `wit/policy.wit` as Rust types, and how they and those of the model become each
//! other.

use wharf_model::policy as model;

mod generated {
    #![allow(missing_docs, reason = "`wit/policy.wit` is the manual")]
    #![allow(clippy::all, reason = "generated")]

    // All interfaces in one world, so that the shared ones have one Rust type each;
    // a plugin has those of its slots.
    wasmtime::component::bindgen!({
        path: "../../wit",
        inline: "
            package wharf:host;
            world all {
                import wharf:policy/log@0.1.0;
                export wharf:policy/lifecycle@0.1.0;
                export wharf:policy/scheduler@0.1.0;
                export wharf:policy/router@0.1.0;
                export wharf:policy/upgrader@0.1.0;
            }
        ",
        world: "wharf:host/all",
    });
}

pub(crate) use generated::exports::wharf::policy::{lifecycle, router, scheduler, upgrader};
pub(crate) use generated::wharf::policy::{log, types};

/// The version of the contract that this host speaks.
pub const VERSION: semver::Version = semver::Version::new(0, 1, 0);

impl From<&model::View> for scheduler::View {
    fn from(view: &model::View) -> Self {
        Self {
            now: view.now,
            worker: view.worker,
            last: view.last.map(|slice| scheduler::Slice {
                replica: slice.replica,
                end: match slice.end {
                    model::SliceEnd::Preempted => scheduler::SliceEnd::Preempted,
                    model::SliceEnd::Waits => scheduler::SliceEnd::Waits,
                    model::SliceEnd::Ended => scheduler::SliceEnd::Ended,
                },
                ran: slice.ran,
            }),
            ready: view.ready.iter().map(Into::into).collect(),
        }
    }
}

impl From<&model::Candidate> for scheduler::Candidate {
    fn from(it: &model::Candidate) -> Self {
        Self {
            replica: it.replica,
            weight: it.weight,
            generation: it.generation,
            ran: it.ran,
            virtual_time: it.virtual_time,
            ready_since: it.ready_since,
        }
    }
}

impl From<scheduler::Choice> for model::Choice {
    fn from(it: scheduler::Choice) -> Self {
        Self {
            replica: it.replica,
            generation: it.generation,
            slice: it.slice,
        }
    }
}

impl From<&model::Attachment> for router::Attachment {
    fn from(it: &model::Attachment) -> Self {
        Self {
            now: it.now,
            replica: it.replica,
            generation: it.generation,
            device: it.device.clone(),
            kind: match it.kind {
                model::DeviceKind::Block => router::DeviceKind::Block,
                model::DeviceKind::Stream => router::DeviceKind::Stream,
                model::DeviceKind::Frames => router::DeviceKind::Frames,
            },
            backends: it.backends.clone(),
        }
    }
}

impl From<router::AttachVerdict> for model::AttachVerdict {
    fn from(it: router::AttachVerdict) -> Self {
        match it {
            router::AttachVerdict::BuiltIn => Self::BuiltIn,
            router::AttachVerdict::Backend(place) => Self::Backend(place),
            router::AttachVerdict::Deny(reason) => Self::Deny(reason),
        }
    }
}

impl From<model::Endpoint> for router::Endpoint {
    fn from(it: model::Endpoint) -> Self {
        Self {
            high: it.high,
            low: it.low,
            port: it.port,
        }
    }
}

impl From<&model::Target> for router::Target {
    fn from(it: &model::Target) -> Self {
        Self {
            replica: it.replica,
            connections: it.connections,
            generation: it.generation,
        }
    }
}

impl From<&model::Connection> for router::Connection {
    fn from(it: &model::Connection) -> Self {
        Self {
            now: it.now,
            lot: it.lot,
            direction: match it.direction {
                model::Direction::Inbound => router::Direction::Inbound,
                model::Direction::Outbound => router::Direction::Outbound,
                model::Direction::Between => router::Direction::Between,
            },
            from_replica: it.from_replica,
            source: it.source.into(),
            destination: it.destination.into(),
            targets: it.targets.iter().map(Into::into).collect(),
        }
    }
}

impl From<router::Verdict> for model::Verdict {
    fn from(it: router::Verdict) -> Self {
        match it {
            router::Verdict::BuiltIn => Self::BuiltIn,
            router::Verdict::Target(place) => Self::Target(place),
            router::Verdict::Spread(weights) => Self::Spread(weights),
            router::Verdict::Pass => Self::Pass,
            router::Verdict::Deny => Self::Deny,
        }
    }
}

impl From<&model::Version> for upgrader::Version {
    fn from(it: &model::Version) -> Self {
        Self {
            digest: it.digest.clone(),
            generation: it.generation,
            state_schema: it.state_schema,
        }
    }
}

impl From<&model::Proposal> for upgrader::Proposal {
    fn from(it: &model::Proposal) -> Self {
        Self {
            now: it.now,
            replica: it.replica,
            old: (&it.old).into(),
            new: (&it.new).into(),
            connections: it.connections,
            labels: it.labels.iter().map(setting).collect(),
        }
    }
}

impl From<model::Observation> for upgrader::Observation {
    fn from(it: model::Observation) -> Self {
        Self {
            connections: it.connections,
            errors: it.errors,
            faults: it.faults,
            median: it.median,
            p99: it.p99,
        }
    }
}

impl From<upgrader::Canary> for model::Canary {
    fn from(it: upgrader::Canary) -> Self {
        Self {
            percent: it.percent,
            period: it.period,
        }
    }
}

impl From<upgrader::Plan> for model::Plan {
    fn from(it: upgrader::Plan) -> Self {
        match it {
            upgrader::Plan::BuiltIn => Self::BuiltIn,
            upgrader::Plan::Replace => Self::Replace,
            upgrader::Plan::BlueGreen(time) => Self::BlueGreen(time),
            upgrader::Plan::Canary(canary) => Self::Canary(canary.into()),
            upgrader::Plan::Defer(time) => Self::Defer(time),
            upgrader::Plan::Refuse(reason) => Self::Refuse(reason),
        }
    }
}

impl From<upgrader::Judgement> for model::Judgement {
    fn from(it: upgrader::Judgement) -> Self {
        match it {
            upgrader::Judgement::BuiltIn => Self::BuiltIn,
            upgrader::Judgement::Keep => Self::Keep,
            upgrader::Judgement::Wait(time) => Self::Wait(time),
            upgrader::Judgement::Advance(canary) => Self::Advance(canary.into()),
            upgrader::Judgement::RollBack(reason) => Self::RollBack(reason),
        }
    }
}

/// A key and its value.
pub(crate) fn setting((key, value): &(String, String)) -> types::Setting {
    types::Setting {
        key: key.clone(),
        value: value.clone(),
    }
}
