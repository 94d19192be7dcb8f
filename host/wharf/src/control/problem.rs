//! Requests that are refused, and the extractors that refuse them.

use axum::Json;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use utoipa::ToSchema;

use crate::cell::protocol::{NoSuchTask, Selector};

/// Most characters of an answer that says why: enough for every reason of ours, and
/// little of a long request that it repeats.
const REASON_MAX: usize = 300;

/// Why a request was refused. Nothing has changed then.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Problem {
    /// One line for people.
    pub(super) error: String,
    #[serde(skip)]
    status: StatusCode,
    /// Whether the same is worth asking at once again.
    #[serde(skip)]
    is_passing: bool,
}

impl Problem {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        let mut error = error.into();
        if let Some((end, _)) = error.char_indices().nth(REASON_MAX) {
            error.truncate(end);
            error.push('…');
        }
        Self {
            error,
            status,
            is_passing: false,
        }
    }

    /// The host is being handed over: nothing was done, and whoever asks again is answered
    /// by who has it then.
    pub(super) fn again(error: impl Into<String>) -> Self {
        Self {
            is_passing: true,
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, error)
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let again = self.is_passing.then_some([(RETRY_AFTER, "0")]);
        (self.status, again, Json(self)).into_response()
    }
}

impl From<NoSuchTask> for Problem {
    fn from(error: NoSuchTask) -> Self {
        Self::new(StatusCode::NOT_FOUND, error.to_string())
    }
}

/// The `{task}` of a path.
pub(super) struct Chosen(pub(super) Selector);

impl<S: Send + Sync> FromRequestParts<S> for Chosen {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let refuse =
            |error: &dyn ToString| Problem::new(StatusCode::BAD_REQUEST, error.to_string());
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| refuse(&rejection.body_text()))?;
        text.parse().map(Self).map_err(|error| refuse(&error))
    }
}

/// Does what takes long on a thread of its own, which ends with the process if not
/// before; the one thread that serves goes on meanwhile.
pub(super) async fn aside<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let broken = |error: &dyn std::fmt::Display| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    };
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name(what.to_owned())
        .spawn(move || {
            // Who asked may have gone; it is done all the same.
            let _ = done.send(work());
        })
        .map_err(|e| broken(&e))?;
    result.await.map_err(|e| broken(&e))
}

/// The body of a request, which is to be a `what`.
pub(super) fn read_body<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|e| {
        let error = format!("the body is no {what}: {e}");
        Problem::new(StatusCode::BAD_REQUEST, error)
    })
}

/// The query of a URL.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(Problem::new(StatusCode::BAD_REQUEST, rejection.body_text())),
        }
    }
}
