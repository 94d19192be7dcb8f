//! What all requests are answered from.

use std::io;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use tokio::sync::{Semaphore, watch};

use super::feed::Following;
use super::problem::Problem;
use super::resources::HostStatus;
use super::server::{FOLLOWERS, ServeConfig};
use super::socket::SharedSocket;
use crate::cell::protocol::{NoSuchTask, Selector, TaskStatus};
use crate::cell::{Accepting, Cell, ControlSocket};
use crate::units::nanos;

/// What the routes have in common. Asking the cell blocks the one thread that
/// serves, on purpose: its supervisor does nothing that takes time, and so answers
/// sooner than another thread would have been woken.
#[derive(Clone)]
pub(super) struct App {
    pub(super) cell: Arc<Cell>,
    config: Arc<ServeConfig>,
    started: SystemTime,
    since: Instant,
    followers: Arc<Semaphore>,
    socket: SharedSocket,
    /// Says who is accepted.
    accepting: watch::Sender<Accepting>,
    end: watch::Receiver<()>,
}

impl App {
    pub(super) fn new(
        cell: Cell,
        config: ServeConfig,
        (socket, accepting): (SharedSocket, watch::Sender<Accepting>),
        end: watch::Receiver<()>,
    ) -> Self {
        Self {
            cell: Arc::new(cell),
            config: Arc::new(config),
            started: SystemTime::now(),
            since: Instant::now(),
            followers: Arc::new(Semaphore::new(FOLLOWERS)),
            socket,
            accepting,
            end,
        }
    }

    /// What a selector means now, if anything.
    pub(super) fn meant(&self, selector: &Selector) -> Vec<TaskStatus> {
        let mut tasks = self.cell.tasks();
        tasks.retain(|task| selector.means(task));
        tasks
    }

    /// What a selector means.
    pub(super) fn chosen(&self, selector: &Selector) -> Result<Vec<TaskStatus>, Problem> {
        let tasks = self.meant(selector);
        if tasks.is_empty() {
            let selector = selector.clone();
            return Err(NoSuchTask { selector }.into());
        }
        Ok(tasks)
    }

    /// A place for a follower. They are fewer than connections, so that who wants
    /// to stop something is not kept out by those who watch.
    pub(super) fn following(&self, follow: bool) -> Result<Option<Following>, Problem> {
        if !follow {
            return Ok(None);
        }
        let full = |_| {
            let error = format!("{FOLLOWERS} clients follow already: end one of them");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, error)
        };
        let place = Arc::clone(&self.followers)
            .try_acquire_owned()
            .map_err(full)?;
        Ok(Some(Following {
            end: self.end.clone(),
            _place: place,
        }))
    }

    /// The socket, to be handed over.
    pub(super) fn socket(&self) -> io::Result<ControlSocket> {
        let (socket, accepting) = (self.socket.clone(), self.accepting.clone());
        Ok(ControlSocket {
            files: self.socket.files(self.config.config.clone())?,
            accept: Box::new(move |who| {
                accepting.send_replace(who);
                if who == Accepting::Never {
                    socket.leave();
                }
            }),
        })
    }

    /// The process, as it is now.
    pub(super) fn host_status(&self) -> HostStatus {
        let started = self.started.duration_since(UNIX_EPOCH);
        HostStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: self.config.config.clone(),
            workers: self.config.workers,
            tasks: self.cell.tasks().len(),
            started_ns: nanos(started.unwrap_or_default()),
            uptime_ns: nanos(self.since.elapsed()),
        }
    }
}
