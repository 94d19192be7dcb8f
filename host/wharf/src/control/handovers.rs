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
/// everything goes on here. Meanwhile others who connect to this socket wait.
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
    let left = app.leave_socket();
    let (files, resting) = left.map_err(|e| Problem::new(StatusCode::CONFLICT, e.to_string()))?;
    let cell = Arc::clone(&app.cell);
    let handed = aside("hand-over", move || {
        let handed = cell.hand_over(&request.program, files);
        // Who waits is another process's to accept.
        if cell.is_handed_over() {
            std::mem::forget(resting);
        }
        handed
    });
    Ok(Json(handed.await??))
}
