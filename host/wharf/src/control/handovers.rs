//! Hand-overs of the host on the control socket.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::App;
use super::problem::{Problem, aside, read_body};
use crate::cell::protocol::HandoverStatus;

/// Where a hand-over is asked for.
pub(super) const PATH: &str = "/v1/handover";

/// What is to go on with everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HandoverRequest {
    /// Absolute path of the program: a `wharf-host`.
    #[schema(value_type = String)]
    pub program: PathBuf,
}

/// Have another program go on with everything, in a process of its own
///
/// Answers when it does, and this process is about to end; or why it does not, and then
/// everything goes on here. Who asks for something while guests go over is answered by
/// that process, or with status 503 and `Retry-After`.
#[utoipa::path(
    post, path = "/v1/handover",
    request_body = HandoverRequest,
    responses(
        (status = 200, body = HandoverStatus),
        (status = 400, body = Problem, description = "a bad body"),
        (status = 409, body = Problem, description = "it cannot be handed over now"),
    ),
)]
pub(super) async fn hand_over(
    State(app): State<App>,
    body: Bytes,
) -> Result<Json<HandoverStatus>, Problem> {
    let request: HandoverRequest = read_body(&body, "hand-over")?;
    if !request.program.is_absolute() {
        let error = "the path of the program is not absolute";
        return Err(Problem::new(StatusCode::BAD_REQUEST, error));
    }
    let socket = app.socket();
    let socket = socket.map_err(|e| Problem::new(StatusCode::CONFLICT, e.to_string()))?;
    let cell = Arc::clone(&app.cell);
    let handed = aside("hand-over", move || {
        cell.hand_over(&request.program, socket)
    });
    Ok(Json(handed.await??))
}
