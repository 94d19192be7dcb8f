//! Policies on the control socket: what is in force, and changing it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wharf_model::policy::SlotName;
use wharf_model::policy::slot::State as Standing;
use wharf_policy::{
    RemoveRefusal, RollbackRefusal, RolledBack, SlotStatus, Slots, StateMoved, SwapOptions,
    SwapRefusal, Swapped, Trace, TraceLine,
};

use super::app::App;
use super::feed::{self, Feed, push_line};
use super::problem::{Asked, Problem, aside, read_body};
use super::resources::TraceQuery;
use crate::units::nanos;

/// How long a shadow waits for questions, when nobody says.
const SHADOW_PATIENCE: Duration = Duration::from_secs(60);

/// Most questions that a shadow answers, and the longest that it waits.
const SHADOW_MOST: u64 = 10_000_000;
const SHADOW_PATIENCE_MOST: Duration = Duration::from_secs(3600);

/// Bytes of trace in one chunk.
const TRACE_AT_ONCE: usize = 256 * 1024;

/// A policy slot and who is in force there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyStatus {
    /// `scheduler`, `router` or `upgrader`.
    #[schema(value_type = String)]
    pub slot: SlotName,
    /// Name of the plugin, or `built-in`.
    pub plugin: String,
    /// Its version.
    pub version: Option<String>,
    /// SHA-256 of its component.
    pub digest: Option<String>,
    /// `built-in`, `probation`, `active` or `quarantined`.
    #[schema(value_type = String)]
    pub state: Standing,
    /// Questions that the plugin was asked since it was put in.
    pub calls: u64,
    /// Those of them that it failed to answer.
    pub strikes: u64,
    /// Median time of a question in nanoseconds.
    pub p50_ns: u64,
    /// 99th percentile of the same.
    pub p99_ns: u64,
    /// Times that another plugin was put in.
    pub swaps: u64,
    /// For how long callers had to wait in the last of them, in nanoseconds.
    pub last_swap_pause_ns: u64,
    /// What a rollback goes back to.
    pub previous: Option<String>,
    /// Why the plugin last failed.
    pub reason: Option<String>,
}

/// A plugin that is to be put into a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SwapRequest {
    /// Absolute path of its component; `built-in` takes out what is there.
    #[schema(value_type = String)]
    pub plugin: PathBuf,
    /// What it is configured with. When there is nothing, what the plugin before it
    /// was configured with, if that has the same name.
    pub settings: Option<BTreeMap<String, String>>,
    /// How many live questions it answers beside the one in force first.
    pub shadow: u64,
    /// How long it waits for them, in milliseconds; a minute when nothing is said.
    pub shadow_patience_ms: Option<u64>,
    /// Do everything but the cut.
    pub dry_run: bool,
    /// Do not hand the state over.
    pub discard_state: bool,
}

/// What a swap did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SwapReport {
    /// What was in force.
    pub old: String,
    /// What is, or would be.
    pub new: String,
    /// Questions that it was rehearsed with.
    pub rehearsed: usize,
    /// What it answered beside the one in force.
    pub shadow: Option<ShadowReport>,
    /// What became of the state, for people.
    pub state: String,
    /// For how long callers had to wait, in nanoseconds; none on a dry run.
    pub pause_ns: Option<u64>,
}

/// What a candidate answered beside the plugin in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ShadowReport {
    /// Live questions that it was asked.
    pub asked: u64,
    /// Those that both answered alike.
    pub agreed: u64,
    /// Questions that came too fast to be asked twice.
    pub left_out: u64,
    /// The first that were answered differently: `number`, `question`, `was`, `would`.
    pub differences: Vec<serde_json::Value>,
}

/// What a rollback did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RollbackReport {
    /// What was in force.
    pub old: String,
    /// What is.
    pub new: String,
    /// For how long callers had to wait, in nanoseconds.
    pub pause_ns: u64,
}

/// The `{slot}` of a path.
pub(super) struct ChosenSlot(SlotName);

impl<S: Send + Sync> FromRequestParts<S> for ChosenSlot {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|it| Problem::new(StatusCode::BAD_REQUEST, it.body_text()))?;
        let slot = SlotName::ALL.into_iter().find(|it| it.as_str() == text);
        slot.map(Self).ok_or_else(|| {
            let error = "there is no such slot: scheduler, router and upgrader are slots";
            Problem::new(StatusCode::NOT_FOUND, error)
        })
    }
}

/// Every policy slot
#[utoipa::path(get, path = "/v1/policies", responses((status = 200, body = [PolicyStatus])))]
pub(super) async fn policies(State(app): State<App>) -> Json<Vec<PolicyStatus>> {
    Json(statuses(app.cell.slots()))
}

/// Put a plugin into a slot
///
/// Answers when it is there, or why it is not; then nothing has changed.
#[utoipa::path(
    post, path = "/v1/policies/{slot}/swap",
    params(("slot" = String, Path, description = "scheduler, router or upgrader")),
    request_body = SwapRequest,
    responses(
        (status = 200, body = SwapReport),
        (status = 400, body = Problem, description = "not a swap"),
        (status = 404, body = Problem, description = "no such slot"),
        (status = 409, body = Problem, description = "the plugin is refused"),
    ),
)]
pub(super) async fn swap(
    State(app): State<App>,
    ChosenSlot(slot): ChosenSlot,
    body: Bytes,
) -> Result<Json<SwapReport>, Problem> {
    let request: SwapRequest = read_body(&body, "swap")?;
    if request.plugin.as_os_str() != BUILT_IN && !request.plugin.is_absolute() {
        let error = "plugin has to be an absolute path, or built-in";
        return Err(Problem::new(StatusCode::BAD_REQUEST, error));
    }
    let slots = Arc::clone(app.cell.slots());
    // This is dropped with the connection, too.
    let waiting = Waiting::default();
    let given_up = Arc::clone(&waiting.given_up);
    aside("policy change", move || {
        do_swap(&slots, slot, &request, given_up)
    })
    .await?
    .map(Json)
}

/// Put back what was in a slot before
#[utoipa::path(
    post, path = "/v1/policies/{slot}/rollback",
    params(("slot" = String, Path, description = "scheduler, router or upgrader")),
    responses(
        (status = 200, body = RollbackReport),
        (status = 404, body = Problem, description = "no such slot"),
        (status = 409, body = Problem, description = "there is nothing to go back to"),
    ),
)]
pub(super) async fn rollback(
    State(app): State<App>,
    ChosenSlot(slot): ChosenSlot,
) -> Result<Json<RollbackReport>, Problem> {
    let slots = Arc::clone(app.cell.slots());
    let done: Result<RolledBack, RollbackRefusal> =
        aside("policy change", move || slots.slot(slot).rollback()).await?;
    done.map(|it| {
        Json(RollbackReport {
            old: it.old,
            new: it.new,
            pause_ns: nanos(it.pause),
        })
    })
    .map_err(|e| match &e {
        RollbackRefusal::Swap(refusal) => refused(refusal),
        RollbackRefusal::Nothing(_) => conflict(&e),
    })
}

/// Questions to a slot and their answers from now on, one JSON object a line
///
/// The first line says what was in force. `wharf policy replay` reads it.
#[utoipa::path(
    get, path = "/v1/policies/{slot}/trace",
    params(("slot" = String, Path, description = "scheduler, router or upgrader"), TraceQuery),
    responses(
        (status = 200, body = String, content_type = "application/x-ndjson"),
        (status = 400, body = Problem, description = "bad query"),
        (status = 404, body = Problem, description = "no such slot"),
        (status = 503, body = Problem, description = "too many followers"),
    ),
)]
pub(super) async fn trace(
    State(app): State<App>,
    ChosenSlot(slot): ChosenSlot,
    Asked(query): Asked<TraceQuery>,
) -> Result<Response, Problem> {
    let following = app.following(true)?;
    let trace = Trace::start(app.cell.slots().slot(slot));
    let lines = TraceLines {
        header: Some(TraceLine::Trace(trace.header.clone())),
        trace,
        left: query.count.unwrap_or(u64::MAX),
        end: query
            .for_ms
            .and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms))),
    };
    Ok(feed::respond(lines, following))
}

/// How what is built in is named where a plugin could be.
pub const BUILT_IN: &str = "built-in";

/// All slots, as they are shown.
pub(super) fn statuses(slots: &Slots) -> Vec<PolicyStatus> {
    let shown = |status: SlotStatus| PolicyStatus {
        slot: status.slot,
        plugin: status.plugin.unwrap_or_else(|| BUILT_IN.to_owned()),
        version: status.version,
        digest: status.digest,
        state: status.state,
        calls: status.calls,
        strikes: status.strikes,
        p50_ns: status.p50_ns,
        p99_ns: status.p99_ns,
        swaps: status.swaps,
        last_swap_pause_ns: status.last_swap_pause_ns,
        previous: status.previous,
        reason: status.reason,
    };
    slots.statuses().into_iter().map(shown).collect()
}

fn do_swap(
    slots: &Arc<Slots>,
    slot: SlotName,
    request: &SwapRequest,
    given_up: Arc<AtomicBool>,
) -> Result<SwapReport, Problem> {
    if request.plugin.as_os_str() == BUILT_IN {
        return take_out(slots, slot, request);
    }
    let plugin = slots.open(&request.plugin).map_err(|e| conflict(&e))?;
    let patience = request
        .shadow_patience_ms
        .map_or(SHADOW_PATIENCE, Duration::from_millis);
    let settings = request.settings.clone();
    let options = SwapOptions {
        settings: settings.map(|it| it.into_iter().collect()),
        shadow: request.shadow.min(SHADOW_MOST),
        shadow_patience: patience.min(SHADOW_PATIENCE_MOST),
        dry_run: request.dry_run,
        discard_state: request.discard_state,
        given_up,
    };
    let done = slots.slot(slot).swap(&plugin, &options);
    done.map(report).map_err(|e| refused(&e))
}

/// What is built in needs no trial, and has no state.
fn take_out(slots: &Slots, slot: SlotName, request: &SwapRequest) -> Result<SwapReport, Problem> {
    if request.shadow > 0 || request.settings.is_some() {
        let error = "what is built in takes no settings and no shadow";
        return Err(Problem::new(StatusCode::BAD_REQUEST, error));
    }
    let removed = slots.slot(slot).remove(request.dry_run);
    let removed = removed.map_err(|e| match e {
        RemoveRefusal::Held(held) => Problem::again(held.to_string()),
        RemoveRefusal::NothingThere(_) => conflict(&e),
    })?;
    Ok(SwapReport {
        old: removed.old,
        new: BUILT_IN.to_owned(),
        rehearsed: 0,
        shadow: None,
        state: "none".to_owned(),
        pause_ns: removed.pause.map(nanos),
    })
}

fn report(done: Swapped) -> SwapReport {
    let shadow = done.shadowed.map(|it| ShadowReport {
        asked: it.asked,
        agreed: it.agreed,
        left_out: it.left_out,
        differences: it
            .differences
            .iter()
            .filter_map(|it| serde_json::to_value(it).ok())
            .collect(),
    });
    SwapReport {
        old: done.old,
        new: done.new,
        rehearsed: done
            .rehearsal
            .recorded
            .saturating_add(done.rehearsal.made_up),
        shadow,
        state: match done.state {
            StateMoved::None => "none".to_owned(),
            StateMoved::Bytes(len) => format!("{len} bytes handed over"),
            StateMoved::Fresh(reason) => format!("begun anew: {reason}"),
        },
        pause_ns: done.pause.map(nanos),
    }
}

/// Somebody who waits for a change; when this is dropped, nobody does any more.
#[derive(Debug, Default)]
struct Waiting {
    given_up: Arc<AtomicBool>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

/// A swap or a rollback was refused.
fn refused(refusal: &SwapRefusal) -> Problem {
    match refusal {
        SwapRefusal::Held(held) => Problem::again(held.to_string()),
        other => conflict(other),
    }
}

fn conflict(error: &dyn std::error::Error) -> Problem {
    Problem::new(StatusCode::CONFLICT, crate::text::one_line(error))
}

/// A trace as a feed.
struct TraceLines {
    header: Option<TraceLine>,
    trace: Trace,
    left: u64,
    end: Option<Instant>,
}

impl Feed for TraceLines {
    fn take(&mut self, _: bool) -> Vec<u8> {
        let mut lines = Vec::new();
        if let Some(header) = self.header.take() {
            push_line(&mut lines, &header);
        }
        // What has come since is not wanted: a busy slot would never let it end.
        while !self.is_over()
            && lines.len() < TRACE_AT_ONCE
            && let Some(line) = self.trace.next(Duration::ZERO)
        {
            if matches!(line, TraceLine::Seen(_)) {
                self.left = self.left.saturating_sub(1);
            }
            push_line(&mut lines, &line);
        }
        lines
    }

    fn is_over(&self) -> bool {
        self.left == 0 || self.end.is_some_and(|end| Instant::now() >= end)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use wharf_model::policy::{Candidate, Question, SlotName, View};
    use wharf_policy::{SlotConfig, Slots, Trace, TraceLine};

    use super::{Feed, TraceLines};

    #[test]
    fn a_trace_ends_when_its_time_is_over_however_much_is_asked() {
        let slots = Slots::new(Vec::new(), SlotConfig::of, None, drop);
        let slot = slots.slot(SlotName::Scheduler);
        let trace = Trace::start(slot);
        let mut lines = TraceLines {
            header: Some(TraceLine::Trace(trace.header.clone())),
            trace,
            left: u64::MAX,
            end: Instant::now().checked_add(Duration::from_secs(3600)),
        };
        let ask = || {
            slot.ask(&Question::Next(View {
                now: 1,
                worker: 0,
                last: None,
                ready: vec![Candidate {
                    replica: 0,
                    weight: 1,
                    generation: 1,
                    ran: 0,
                    virtual_time: 0,
                    ready_since: 0,
                }],
            }))
        };
        ask();
        let taken = lines.take(false);
        assert_eq!(taken.iter().filter(|&&byte| byte == b'\n').count(), 2);
        lines.end = Some(Instant::now());
        ask();
        assert!(lines.take(false).is_empty() && lines.is_over());
    }
}
