//! The control plane: HTTP and JSON over a Unix socket, and the client that the
//! command line is.
//!
//! ```text
//!   wharf ps ── Client ──HTTP──▶ socket ──▶ Server (one thread) ──▶ Cell
//! ```
//!
//! [`Server`] turns requests into calls of [`Cell`](crate::cell::Cell) and decides
//! nothing by itself. It runs on one thread of its own, so that no client, however
//! slow, is noticed by a guest. What it speaks is written down in `openapi.json`,
//! which is made from the routes themselves.
//!
//! Who may open the socket may do everything; that is its owner, by the file's
//! mode.

mod app;
mod client;
mod console;
mod error;
mod exposition;
mod feed;
mod handovers;
mod lines;
mod metrics;
mod policies;
mod policy_metrics;
mod problem;
mod resources;
mod routes;
mod server;
mod snapshots;
mod socket;
mod upgrades;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use client::{Client, ClientError};
pub use error::ControlError;
pub use handovers::HandoverRequest;
pub use lines::Lines;
pub use policies::{BUILT_IN, PolicyStatus, RollbackReport, ShadowReport, SwapReport, SwapRequest};
pub use resources::{ConsolePiece, HostStatus};
pub use routes::openapi;
pub use server::{ServeConfig, Server, Serving};
pub use snapshots::SnapshotRequest;
pub use upgrades::UpgradeRequest;

/// Where the socket is when nobody says otherwise: `wharf.sock` in the user's
/// runtime directory, or in `/run` when there is none.
#[must_use]
pub fn default_path() -> PathBuf {
    let directory = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|directory| directory.is_absolute())
        .unwrap_or_else(|| PathBuf::from("/run"));
    directory.join("wharf.sock")
}
