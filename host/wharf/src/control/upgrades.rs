//! Upgrades on the control socket: begun, taken back, and looked at.

use std::path::PathBuf;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::App;
use super::problem::{Chosen, Problem, read_body};
use crate::cell::TaskRefusal;
use crate::cell::protocol::UpgradeStatus;

/// What is to run in place of what does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpgradeRequest {
    /// Absolute path of the image.
    #[schema(value_type = String)]
    pub image: PathBuf,
}

impl From<TaskRefusal> for Problem {
    fn from(refusal: TaskRefusal) -> Self {
        match refusal {
            TaskRefusal::NoSuchTask(error) => error.into(),
            TaskRefusal::Denied(reason) => Self::new(StatusCode::CONFLICT, reason),
            TaskRefusal::HandedOver => Self::again(refusal.to_string()),
        }
    }
}

/// Put another image in the place of what runs
///
/// Answers when that has begun; `/v1/upgrades/{id}` tells how it goes.
#[utoipa::path(
    post, path = "/v1/tasks/{task}/upgrade",
    params(("task" = String, Path, description = "NAME, NAME.INDEX or NAME.INDEX@GENERATION")),
    request_body = UpgradeRequest,
    responses(
        (status = 202, body = UpgradeStatus),
        (status = 400, body = Problem, description = "not a task's name, or a bad body"),
        (status = 404, body = Problem, description = "no such task"),
        (status = 409, body = Problem, description = "it cannot be upgraded now"),
    ),
)]
pub(super) async fn upgrade(
    State(app): State<App>,
    Chosen(selector): Chosen,
    body: Bytes,
) -> Result<(StatusCode, Json<UpgradeStatus>), Problem> {
    let request: UpgradeRequest = read_body(&body, "upgrade")?;
    if !request.image.is_absolute() {
        let error = "the path of the image is not absolute";
        return Err(Problem::new(StatusCode::BAD_REQUEST, error));
    }
    let status = app.cell.upgrade(&selector, &request.image)?;
    Ok((StatusCode::ACCEPTED, Json(status)))
}

/// Put the image before in the place of what runs
///
/// Answers when that has begun; `/v1/upgrades/{id}` tells how it goes.
#[utoipa::path(
    post, path = "/v1/tasks/{task}/rollback",
    params(("task" = String, Path, description = "NAME, NAME.INDEX or NAME.INDEX@GENERATION")),
    responses(
        (status = 202, body = UpgradeStatus),
        (status = 400, body = Problem, description = "not a task's name"),
        (status = 404, body = Problem, description = "no such task"),
        (status = 409, body = Problem, description = "there is nothing to go back to now"),
    ),
)]
pub(super) async fn rollback(
    State(app): State<App>,
    Chosen(selector): Chosen,
) -> Result<(StatusCode, Json<UpgradeStatus>), Problem> {
    let status = app.cell.rollback(&selector)?;
    Ok((StatusCode::ACCEPTED, Json(status)))
}

/// The last upgrades, the oldest first
#[utoipa::path(get, path = "/v1/upgrades", responses((status = 200, body = [UpgradeStatus])))]
pub(super) async fn upgrades(State(app): State<App>) -> Json<Vec<UpgradeStatus>> {
    Json(app.cell.upgrades())
}

/// One of the last upgrades
#[utoipa::path(
    get, path = "/v1/upgrades/{id}",
    params(("id" = u64, Path, description = "its number")),
    responses(
        (status = 200, body = UpgradeStatus),
        (status = 404, body = Problem, description = "there is none of that number"),
    ),
)]
pub(super) async fn upgrade_of(
    State(app): State<App>,
    Path(id): Path<u64>,
) -> Result<Json<UpgradeStatus>, Problem> {
    let upgrades = app.cell.upgrades();
    let found = upgrades.into_iter().find(|it| it.id == id);
    found
        .map(Json)
        .ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("there is no upgrade {id}")))
}
