//! What the control socket shows besides tasks and events, which are
//! [`protocol`](crate::cell::protocol)'s.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The process that serves the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostStatus {
    /// Its process id.
    pub pid: u32,
    /// Version of wharf.
    pub version: String,
    /// The file it was configured by, with U+FFFD in place of what is not UTF-8.
    pub config: Option<String>,
    /// Threads that run guests.
    pub workers: u32,
    /// Replicas of tasks, living or not.
    pub tasks: usize,
    /// When it began to serve, in nanoseconds since 1970.
    pub started_ns: u64,
    /// For how long it has served, in nanoseconds.
    pub uptime_ns: u64,
}

/// A piece of what a replica wrote to its console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsolePiece {
    /// The replica, as `web.0`.
    pub task: String,
    /// Position of the first byte, counted from the first the replica ever wrote.
    /// Later than where the piece before it ended when bytes between them were
    /// dropped.
    pub start: u64,
    /// The text, with U+FFFD in place of what is not UTF-8. It ends anywhere, but
    /// not within a character.
    pub text: String,
}

/// What to show of consoles.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ConsoleQuery {
    /// Go on with what will be written, until the host ends.
    pub(super) follow: bool,
    /// Begin with the last so many lines of each replica, and not with the first
    /// byte that is kept.
    pub(super) tail: Option<usize>,
}

/// Which events to show.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Go on with what will happen, until the host ends.
    pub(super) follow: bool,
    /// Only events with a larger `seq`.
    pub(super) after: u64,
}

/// How much to trace.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TraceQuery {
    /// End after so many questions; when nobody says, when the client goes.
    pub(super) count: Option<u64>,
    /// End after so many milliseconds.
    pub(super) for_ms: Option<u64>,
}
