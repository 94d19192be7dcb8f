//! Streams of JSON lines that may go on for as long as the host runs.
//!
//! A feed is polled and pushes nothing: what a client does not take stays in the
//! ring or log that it comes from, where newer output replaces it. So a follower
//! costs the host its connection's buffer, whatever it does.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time;

use crate::cell::Cell;
use crate::cell::protocol::Event;

/// How often a follower looks for news: often enough for people, and too seldom
/// to be seen in a profile.
const PERIOD: Duration = Duration::from_millis(50);

/// Events in one chunk.
const EVENTS_AT_ONCE: usize = 64;

/// Where lines come from.
pub(super) trait Feed: Send + 'static {
    /// The next lines, or nothing when there are none at the moment. `is_last`
    /// when nothing will be added any more.
    fn take(&mut self, is_last: bool) -> Vec<u8>;

    /// Says that nothing will be added, although the host goes on.
    fn is_over(&self) -> bool {
        false
    }
}

/// What a stream needs to go on after what there is.
pub(super) struct Following {
    /// Closed when the host ends.
    pub(super) end: watch::Receiver<()>,
    /// One of the places for followers.
    pub(super) _place: OwnedSemaphorePermit,
}

/// A response with the lines of a feed: those that there are, and those to come
/// when they are followed.
pub(super) fn respond(feed: impl Feed, following: Option<Following>) -> Response {
    let lines = stream::unfold((feed, following), |(mut feed, mut following)| async move {
        loop {
            let is_last = following
                .as_ref()
                .is_none_or(|following| following.end.has_changed().is_err());
            let lines = feed.take(is_last);
            if !lines.is_empty() {
                let chunk = Ok::<_, Infallible>(Bytes::from(lines));
                return Some((chunk, (feed, following)));
            }
            match &mut following {
                // An end within the period is what there is to wait for, too.
                Some(following) if !is_last && !feed.is_over() => {
                    let _ = time::timeout(PERIOD, following.end.changed()).await;
                }
                _ => return None,
            }
        }
    });
    (
        [(CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(lines),
    )
        .into_response()
}

/// Adds a value as one line. A type with a value that is no JSON would add nothing;
/// ours have none.
pub(super) fn push_line(lines: &mut Vec<u8>, value: &impl Serialize) {
    if let Ok(json) = serde_json::to_vec(value) {
        lines.extend(json);
        lines.push(b'\n');
    }
}

/// Events of a cell from one on.
pub(super) struct Events {
    cell: Arc<Cell>,
    after: u64,
    /// The last to show, unless they are followed.
    until: Option<u64>,
}

impl Events {
    pub(super) fn new(cell: Arc<Cell>, after: u64, follow: bool) -> Self {
        let until = (!follow).then(|| cell.events().last());
        Self { cell, after, until }
    }
}

impl Feed for Events {
    fn take(&mut self, _: bool) -> Vec<u8> {
        let events = self.cell.events().after(self.after, EVENTS_AT_ONCE);
        let wanted = |event: &&Event| self.until.is_none_or(|until| event.seq <= until);
        let mut lines = Vec::new();
        for event in events.iter().take_while(wanted) {
            self.after = event.seq;
            push_line(&mut lines, event);
        }
        lines
    }
}
