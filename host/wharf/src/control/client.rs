//! The client of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::{self, Runtime};
use tokio::time;
use wharf_model::policy::SlotName;
use wharf_policy::TraceLine;

use super::handovers::{self, HandoverRequest};
use super::lines::Lines;
use super::policies::{PolicyStatus, RollbackReport, SwapReport, SwapRequest};
use super::problem::Problem;
use super::resources::{ConsolePiece, HostStatus};
use super::snapshots::SnapshotRequest;
use super::upgrades::UpgradeRequest;
use crate::cell::protocol::{
    Event, HandoverStatus, Selector, SnapshotStatus, TaskStatus, UpgradeStatus,
};

/// How long a host may take to begin an answer. It needs microseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take to try a plugin, besides what a shadow takes: the largest
/// ones compile for half a minute.
const TRIAL_PATIENCE: Duration = Duration::from_secs(120);

/// How long a hand-over may take: another process starts, and compiles policies.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(300);

/// How long to wait for a place among those who wait to be connected. The host drops
/// those who hold a connection and say nothing sooner.
const CROWD_PATIENCE: Duration = Duration::from_secs(5);

/// How long a host may take to be handed over, for who is told to ask again.
const ELSEWHERE_PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait between two looks for that place, or for the other process.
const CROWD_PAUSE: Duration = Duration::from_millis(20);

/// A host that was not reached, or that refused.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket.
    #[error("no wharf is running at {}: start one with `wharf up`", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot be used: somebody else's, most likely.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// So many wait to be connected that the kernel lets no more wait.
    #[error(
        "too many clients wait for the wharf at {}: end some, such as `wharf events -f`, or try \
         again", path.display()
    )]
    Crowded {
        /// The socket.
        path: PathBuf,
    },
    /// The host does not answer.
    #[error("the wharf at {} does not answer", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The host refused, and said so.
    #[error("{0}")]
    Refused(String),
    /// The connection broke.
    #[error("the connection to wharf was lost")]
    Lost(#[source] hyper::Error),
    /// The host is of another version, most likely.
    #[error("wharf's answer is not understood")]
    NotUnderstood(#[source] serde_json::Error),
    /// There are no resources for a client.
    #[error("cannot make a client")]
    Runtime(#[source] io::Error),
}

/// A client of a host. Each call is a connection of its own and waits for the
/// answer.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// Makes a client of the host at the socket `path`, which need not be there yet.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub fn new(path: &Path) -> Result<Self, ClientError> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(ClientError::Runtime)?;
        let path = path.to_owned();
        Ok(Self { path, runtime })
    }

    /// The host itself.
    ///
    /// # Errors
    ///
    /// When it is not reached.
    pub fn host(&self) -> Result<HostStatus, ClientError> {
        self.call(Method::GET, "/v1/host")
    }

    /// Every replica, or those that a selector means.
    ///
    /// # Errors
    ///
    /// When the host is not reached, or there are none.
    pub fn tasks(&self, selector: Option<&Selector>) -> Result<Vec<TaskStatus>, ClientError> {
        match selector {
            Some(selector) => self.call(Method::GET, &format!("/v1/tasks/{selector}")),
            None => self.call(Method::GET, "/v1/tasks"),
        }
    }

    /// Begins to stop what the selector means.
    ///
    /// # Errors
    ///
    /// When the host is not reached, or there is nothing of that name.
    pub fn stop(&self, selector: &Selector) -> Result<Vec<TaskStatus>, ClientError> {
        self.call(Method::POST, &format!("/v1/tasks/{selector}/stop"))
    }

    /// Begins a new generation of what the selector means.
    ///
    /// # Errors
    ///
    /// When the host is not reached, or there is nothing of that name.
    pub fn restart(&self, selector: &Selector) -> Result<Vec<TaskStatus>, ClientError> {
        self.call(Method::POST, &format!("/v1/tasks/{selector}/restart"))
    }

    /// Begins to put another image, by its absolute path, in the place of what the
    /// selector means runs.
    ///
    /// # Errors
    ///
    /// When the host is not reached, or refuses.
    pub fn upgrade(
        &self,
        selector: &Selector,
        request: &UpgradeRequest,
    ) -> Result<UpgradeStatus, ClientError> {
        let body = serde_json::to_vec(request).map_err(ClientError::NotUnderstood)?;
        let uri = format!("/v1/tasks/{selector}/upgrade");
        self.call_with(Method::POST, &uri, body.into(), PATIENCE)
    }

    /// The same with the image that ran before.
    ///
    /// # Errors
    ///
    /// When the host is not reached, or refuses.
    pub fn undo_upgrade(&self, selector: &Selector) -> Result<UpgradeStatus, ClientError> {
        self.call(Method::POST, &format!("/v1/tasks/{selector}/rollback"))
    }

    /// How an upgrade stands.
    ///
    /// # Errors
    ///
    /// When the host is not reached, or knows nothing of it.
    pub fn upgrade_status(&self, id: u64) -> Result<UpgradeStatus, ClientError> {
        self.call(Method::GET, &format!("/v1/upgrades/{id}"))
    }

    /// Freezes one replica into a file, by its absolute path.
    ///
    /// # Errors
    ///
    /// When the host is not reached, or refuses.
    pub fn snapshot(
        &self,
        selector: &Selector,
        request: &SnapshotRequest,
    ) -> Result<SnapshotStatus, ClientError> {
        let body = serde_json::to_vec(request).map_err(ClientError::NotUnderstood)?;
        let uri = format!("/v1/tasks/{selector}/snapshot");
        self.call_with(Method::POST, &uri, body.into(), TRIAL_PATIENCE)
    }

    /// Has another program, by its absolute path, go on with everything.
    ///
    /// # Errors
    ///
    /// When the host is not reached, or refuses.
    pub fn hand_over(&self, request: &HandoverRequest) -> Result<HandoverStatus, ClientError> {
        let body = serde_json::to_vec(request).map_err(ClientError::NotUnderstood)?;
        self.call_with(
            Method::POST,
            handovers::PATH,
            body.into(),
            HANDOVER_PATIENCE,
        )
    }

    /// Begins to end the host.
    ///
    /// # Errors
    ///
    /// When it is not reached.
    pub fn down(&self) -> Result<HostStatus, ClientError> {
        self.call(Method::POST, "/v1/down")
    }

    /// What replicas wrote to their consoles, from the last `tail` lines of each
    /// on, and what they will write when that is to be followed.
    ///
    /// # Errors
    ///
    /// When the host is not reached, or there is nothing of that name.
    pub fn console(
        &self,
        selector: &Selector,
        tail: Option<usize>,
        follow: bool,
    ) -> Result<Lines<'_, ConsolePiece>, ClientError> {
        let mut uri = format!("/v1/tasks/{selector}/console?follow={follow}");
        if let Some(lines) = tail {
            uri.push_str(&format!("&tail={lines}"));
        }
        self.lines(&uri)
    }

    /// Events with a `seq` above `after`.
    ///
    /// # Errors
    ///
    /// When the host is not reached.
    pub fn events(&self, after: u64, follow: bool) -> Result<Lines<'_, Event>, ClientError> {
        self.lines(&format!("/v1/events?after={after}&follow={follow}"))
    }

    /// Every policy slot.
    ///
    /// # Errors
    ///
    /// When the host is not reached.
    pub fn policies(&self) -> Result<Vec<PolicyStatus>, ClientError> {
        self.call(Method::GET, "/v1/policies")
    }

    /// Puts a plugin into a slot, and waits until it is there.
    ///
    /// # Errors
    ///
    /// When the host is not reached, or refuses the plugin.
    pub fn swap(&self, slot: SlotName, request: &SwapRequest) -> Result<SwapReport, ClientError> {
        let body = serde_json::to_vec(request).map_err(ClientError::NotUnderstood)?;
        let shadow = match request.shadow {
            0 => Duration::ZERO,
            _ => Duration::from_millis(request.shadow_patience_ms.unwrap_or(60_000)),
        };
        let patience = TRIAL_PATIENCE.saturating_add(shadow);
        let uri = format!("/v1/policies/{slot}/swap");
        self.call_with(Method::POST, &uri, body.into(), patience)
    }

    /// Puts back what was in a slot before.
    ///
    /// # Errors
    ///
    /// When the host is not reached, or there is nothing to go back to.
    pub fn rollback(&self, slot: SlotName) -> Result<RollbackReport, ClientError> {
        let uri = format!("/v1/policies/{slot}/rollback");
        self.call_with(Method::POST, &uri, Bytes::new(), TRIAL_PATIENCE)
    }

    /// What a slot is asked and answers from now on, until so many questions or so
    /// much time.
    ///
    /// # Errors
    ///
    /// When the host is not reached.
    pub fn trace(
        &self,
        slot: SlotName,
        count: Option<u64>,
        time: Option<Duration>,
    ) -> Result<Lines<'_, TraceLine>, ClientError> {
        let count = count.map(|count| format!("count={count}"));
        let time = time.map(|time| format!("for_ms={}", time.as_millis()));
        let query: Vec<String> = count.into_iter().chain(time).collect();
        self.lines(&format!("/v1/policies/{slot}/trace?{}", query.join("&")))
    }

    /// The metrics, as text.
    ///
    /// # Errors
    ///
    /// When the host is not reached.
    pub fn metrics(&self) -> Result<String, ClientError> {
        let body = self.receive(self.send(Method::GET, "/metrics", Bytes::new(), PATIENCE)?)?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    fn call<T: DeserializeOwned>(&self, method: Method, uri: &str) -> Result<T, ClientError> {
        self.call_with(method, uri, Bytes::new(), PATIENCE)
    }

    fn call_with<T: DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<T, ClientError> {
        let body = self.receive(self.send(method, uri, body, patience)?)?;
        serde_json::from_slice(&body).map_err(ClientError::NotUnderstood)
    }

    fn lines<T>(&self, uri: &str) -> Result<Lines<'_, T>, ClientError> {
        let response = self.send(Method::GET, uri, Bytes::new(), PATIENCE)?;
        Ok(Lines::new(&self.runtime, response.into_body()))
    }

    /// A response that is no refusal.
    fn send(
        &self,
        method: Method,
        uri: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<Response<Incoming>, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::HOST, "wharf")
            .body(Full::new(body))
            .map_err(|error| ClientError::Refused(error.to_string()))?;
        let start = Instant::now();
        let response = loop {
            let answer = self.runtime.block_on(async {
                let silent = |_| ClientError::Silent {
                    path: self.path.clone(),
                };
                time::timeout(patience, self.exchange(request.clone()))
                    .await
                    .map_err(silent)?
            });
            let response = answer?;
            // It is being handed over: nothing was done.
            let is_elsewhere = response.headers().contains_key(header::RETRY_AFTER);
            if !is_elsewhere || start.elapsed() > ELSEWHERE_PATIENCE {
                break response;
            }
            std::thread::sleep(CROWD_PAUSE);
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.receive(response)?;
        let told = serde_json::from_slice(&body).map(|Problem { error, .. }| error);
        Err(ClientError::Refused(
            told.unwrap_or_else(|_| format!("wharf answers {status}")),
        ))
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(ClientError::Lost)?;
        // It ends with the response, and its errors are the response's, too.
        tokio::spawn(connection);
        sender
            .send_request(request)
            .await
            .map_err(ClientError::Lost)
    }

    /// Connects, after a while when others wait to be connected, too.
    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let start = Instant::now();
        loop {
            match UnixStream::connect(&self.path).await {
                Err(e) if is_crowded(&e) && start.elapsed() < CROWD_PATIENCE => {
                    time::sleep(CROWD_PAUSE).await;
                }
                other => return other.map_err(|source| self.not_connected(source)),
            }
        }
    }

    fn not_connected(&self, source: io::Error) -> ClientError {
        let path = self.path.clone();
        match source.kind() {
            // The last is what a host answers that goes at this very moment.
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset => ClientError::NotRunning { path },
            _ if is_crowded(&source) => ClientError::Crowded { path },
            _ => ClientError::Connect { path, source },
        }
    }

    fn receive(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = self.runtime.block_on(async {
            let silent = |_| ClientError::Silent {
                path: self.path.clone(),
            };
            time::timeout(PATIENCE, response.into_body().collect())
                .await
                .map_err(silent)
        })?;
        Ok(body.map_err(ClientError::Lost)?.to_bytes())
    }
}

/// Whether the queue of the socket is full: unix(7) has EAGAIN for that.
fn is_crowded(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
