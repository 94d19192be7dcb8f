//! Snapshots on the control socket.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::App;
use super::problem::{Chosen, Problem, aside, read_body};
use crate::cell::protocol::SnapshotStatus;

/// Where a snapshot goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// Absolute path of the file, which is made or replaced.
    #[schema(value_type = String)]
    pub file: PathBuf,
}

/// Freeze one replica into a file, and have it go on
///
/// Answers when the file is whole and on the disk. Others can be made of it.
#[utoipa::path(
    post, path = "/v1/tasks/{task}/snapshot",
    params(("task" = String, Path, description = "NAME, NAME.INDEX or NAME.INDEX@GENERATION")),
    request_body = SnapshotRequest,
    responses(
        (status = 200, body = SnapshotStatus),
        (status = 400, body = Problem, description = "not a task's name, or a bad body"),
        (status = 404, body = Problem, description = "no such task"),
        (status = 409, body = Problem, description = "it cannot be frozen now, or not written"),
    ),
)]
pub(super) async fn snapshot(
    State(app): State<App>,
    Chosen(selector): Chosen,
    body: Bytes,
) -> Result<Json<SnapshotStatus>, Problem> {
    let request: SnapshotRequest = read_body(&body, "snapshot")?;
    if !request.file.is_absolute() {
        let error = "the path of the file is not absolute";
        return Err(Problem::new(StatusCode::BAD_REQUEST, error));
    }
    let cell = Arc::clone(&app.cell);
    let done = aside("snapshot", move || cell.snapshot(&selector, &request.file)).await?;
    Ok(Json(done?))
}
