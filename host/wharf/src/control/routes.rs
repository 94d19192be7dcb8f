//! What can be asked, and the description of it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, body};
use tokio::time;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::app::App;
use super::console::Consoles;
use super::exposition::Exposition;
use super::feed::{self, Events};
use super::handovers;
use super::metrics;
use super::policies;
use super::problem::{Asked, Chosen, Problem};
use super::resources::{ConsolePiece, ConsoleQuery, EventsQuery, HostStatus};
use super::snapshots;
use super::upgrades;
use crate::cell::TaskRefusal;
use crate::cell::protocol::{Event, TaskStatus};

/// Bytes of a request's body: a plugin's path and settings at most.
const BODY_BYTES: usize = 16 * 1024;

/// How long a body may take to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

#[derive(OpenApi)]
#[openapi(info(
    title = "wharf",
    license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    description = "Control of a host that runs unikernels: HTTP over its Unix socket. \
                   Times are nanoseconds; `{task}` is a task's name, NAME.INDEX for one \
                   replica, or NAME.INDEX@GENERATION for one life of it."
))]
struct Description;

/// Everything that can be asked of a cell.
pub(super) fn router(app: App) -> Router {
    let (router, _) = described();
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(bound_body))
        .layer(middleware::from_fn_with_state(app.clone(), elsewhere))
        .with_state(app)
}

/// The description of the control socket as an OpenAPI 3.1 document in JSON.
///
/// # Errors
///
/// Never: the document is made of constants.
pub fn openapi() -> serde_json::Result<String> {
    let (_, description) = described();
    let mut json = description.to_pretty_json()?;
    json.push('\n');
    Ok(json)
}

fn described() -> (Router<App>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(host))
        .routes(routes!(tasks))
        .routes(routes!(task))
        .routes(routes!(stop))
        .routes(routes!(restart))
        .routes(routes!(console))
        .routes(routes!(events))
        .routes(routes!(upgrades::upgrade))
        .routes(routes!(upgrades::rollback))
        .routes(routes!(upgrades::upgrades))
        .routes(routes!(upgrades::upgrade_of))
        .routes(routes!(snapshots::snapshot))
        .routes(routes!(policies::policies))
        .routes(routes!(policies::swap))
        .routes(routes!(policies::rollback))
        .routes(routes!(policies::trace))
        .routes(routes!(handovers::hand_over))
        .routes(routes!(down))
        .routes(routes!(measure))
        .split_for_parts()
}

/// The process that serves the socket
#[utoipa::path(get, path = "/v1/host", responses((status = 200, body = HostStatus)))]
async fn host(State(app): State<App>) -> Json<HostStatus> {
    Json(app.host_status())
}

/// Every replica of every task
#[utoipa::path(get, path = "/v1/tasks", responses((status = 200, body = [TaskStatus])))]
async fn tasks(State(app): State<App>) -> Json<Vec<TaskStatus>> {
    Json(app.cell.tasks())
}

/// The replicas of one task, or one of them
#[utoipa::path(
    get, path = "/v1/tasks/{task}",
    params(("task" = String, Path, description = "NAME, NAME.INDEX or NAME.INDEX@GENERATION")),
    responses(
        (status = 200, body = [TaskStatus]),
        (status = 400, body = Problem, description = "not a task's name"),
        (status = 404, body = Problem, description = "no such task"),
    ),
)]
async fn task(
    State(app): State<App>,
    Chosen(selector): Chosen,
) -> Result<Json<Vec<TaskStatus>>, Problem> {
    app.chosen(&selector).map(Json)
}

/// Stop a task for good
///
/// Answers when that has begun; its `state` tells when it is done. Of two generations that
/// run beside each other, one can be stopped: the new one, and the old one goes on; or the
/// old one when the new one has its place, whatever connections it has left.
#[utoipa::path(
    post, path = "/v1/tasks/{task}/stop",
    params(("task" = String, Path, description = "NAME, NAME.INDEX or NAME.INDEX@GENERATION")),
    responses(
        (status = 202, body = [TaskStatus]),
        (status = 400, body = Problem, description = "not a task's name"),
        (status = 404, body = Problem, description = "no such task"),
        (status = 409, body = Problem, description = "a generation that is needed"),
    ),
)]
async fn stop(
    State(app): State<App>,
    Chosen(selector): Chosen,
) -> Result<(StatusCode, Json<Vec<TaskStatus>>), Problem> {
    app.cell.stop(&selector)?;
    // A life may be gone already.
    Ok((StatusCode::ACCEPTED, Json(app.meant(&selector))))
}

/// Begin a new generation of a task, ending the present one first
///
/// Answers when that has begun; its `generation` tells when it is done.
#[utoipa::path(
    post, path = "/v1/tasks/{task}/restart",
    params(("task" = String, Path, description = "NAME, NAME.INDEX or NAME.INDEX@GENERATION")),
    responses(
        (status = 202, body = [TaskStatus]),
        (status = 400, body = Problem, description = "not a task's name"),
        (status = 404, body = Problem, description = "no such task"),
    ),
)]
async fn restart(
    State(app): State<App>,
    Chosen(selector): Chosen,
) -> Result<(StatusCode, Json<Vec<TaskStatus>>), Problem> {
    app.cell.restart(&selector)?;
    Ok((StatusCode::ACCEPTED, Json(app.meant(&selector))))
}

/// What a task wrote to its console, one JSON object a line
#[utoipa::path(
    get, path = "/v1/tasks/{task}/console",
    params(("task" = String, Path, description = "NAME or NAME.INDEX"), ConsoleQuery),
    responses(
        (status = 200, body = ConsolePiece, content_type = "application/x-ndjson"),
        (status = 400, body = Problem, description = "not a task's name, or a bad query"),
        (status = 404, body = Problem, description = "no such task"),
        (status = 503, body = Problem, description = "too many followers"),
    ),
)]
async fn console(
    State(app): State<App>,
    Chosen(selector): Chosen,
    Asked(query): Asked<ConsoleQuery>,
) -> Result<Response, Problem> {
    if selector.generation.is_some() {
        let error = "a console is a replica's, of all its generations: write NAME.INDEX";
        return Err(Problem::new(StatusCode::BAD_REQUEST, error));
    }
    let consoles = Consoles::new(Arc::clone(&app.cell), &selector, query)?;
    let following = app.following(query.follow)?;
    Ok(feed::respond(consoles, following))
}

/// What happened, one JSON object a line
#[utoipa::path(
    get, path = "/v1/events",
    params(EventsQuery),
    responses(
        (status = 200, body = Event, content_type = "application/x-ndjson"),
        (status = 400, body = Problem, description = "bad query"),
        (status = 503, body = Problem, description = "too many followers"),
    ),
)]
async fn events(
    State(app): State<App>,
    Asked(query): Asked<EventsQuery>,
) -> Result<Response, Problem> {
    let following = app.following(query.follow)?;
    let events = Events::new(Arc::clone(&app.cell), query.after, query.follow);
    Ok(feed::respond(events, following))
}

/// Stop all tasks and end the host; asked a second time, at once
#[utoipa::path(post, path = "/v1/down", responses((status = 202, body = HostStatus)))]
async fn down(State(app): State<App>) -> Result<(StatusCode, Json<HostStatus>), Problem> {
    let status = app.host_status();
    app.cell.down();
    if app.cell.is_handed_over() {
        return Err(TaskRefusal::HandedOver.into());
    }
    Ok((StatusCode::ACCEPTED, Json(status)))
}

/// Counters and gauges, in the OpenMetrics text format
///
/// In Prometheus' older one for who prefers that by its Accept header.
#[utoipa::path(
    get, path = "/metrics",
    responses((status = 200, content(
        (String = Exposition::OpenMetrics.media_type()),
        (String = Exposition::Classic.media_type()),
    ))),
)]
async fn measure(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    let text = metrics::encode(
        &app.cell.tasks(),
        &app.cell.events().counts(),
        app.cell.slots().statuses(),
    )
    .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let exposition = Exposition::asked_for(&headers);
    let media_type = [(CONTENT_TYPE, exposition.media_type())];
    Ok((media_type, exposition.write(text)).into_response())
}

async fn unknown_path(uri: Uri) -> Problem {
    let error = format!("there is nothing at {}", uri.path());
    Problem::new(StatusCode::NOT_FOUND, error)
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let error = format!("{} does not take {method}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, error)
}

/// What this process tells of itself when another has the host is not what that one would
/// tell, which is to be asked. What was changed here before that was changed there, too.
async fn elsewhere(State(app): State<App>, request: Request, next: Next) -> Response {
    let only_looks = request.method() == Method::GET;
    let response = next.run(request).await;
    if only_looks && app.cell.is_handed_over() {
        return Problem::from(TaskRefusal::HandedOver).into_response();
    }
    response
}

/// Reads a body, which nothing needs, before anything is done: what is refused
/// changes nothing.
async fn bound_body(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match time::timeout(BODY_PATIENCE, body::to_bytes(body, BODY_BYTES)).await {
        Ok(Ok(body)) => next.run(Request::from_parts(parts, body.into())).await,
        Ok(Err(_)) => {
            let error = format!("a body has at most {BODY_BYTES} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, error).into_response()
        }
        Err(_) => {
            Problem::new(StatusCode::REQUEST_TIMEOUT, "the body does not arrive").into_response()
        }
    }
}
