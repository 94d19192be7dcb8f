//! Clients that ask without end, and what they saw.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::{runtime, time};

use crate::text::one_line;

/// Clients of each service.
const CLIENTS: u32 = 8;

/// Requests on one connection of a client who comes and goes.
const VISIT: u32 = 5;

/// How long a client thinks about an answer.
const THOUGHT: Duration = Duration::from_millis(1);

/// How long an answer may take before it counts as none.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients of two services, on a thread of their own.
pub(super) struct Clients {
    over: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: JoinHandle<anyhow::Result<()>>,
}

/// What clients saw.
#[derive(Debug, Default)]
struct Seen {
    requests: u64,
    /// Since somebody looked.
    worst: Duration,
    looked: u64,
    failures: Vec<String>,
    /// What was written last under each key.
    written: BTreeMap<String, String>,
}

/// What clients saw in a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) requests: u64,
    pub(super) worst: Duration,
}

/// What clients saw in all.
#[derive(Debug)]
pub(super) struct Total {
    pub(super) requests: u64,
    pub(super) failures: Vec<String>,
    pub(super) written: BTreeMap<String, String>,
}

impl Clients {
    /// Has clients ask `visited`, who come and go, and `store`, who stay, write, and read
    /// what they wrote.
    pub(super) fn start(visited: SocketAddr, store: SocketAddr) -> anyhow::Result<Self> {
        let (over, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Seen>>::default());
        let (until, tell) = (Arc::clone(&over), Arc::clone(&seen));
        let thread = std::thread::Builder::new()
            .name("clients".to_owned())
            .spawn(move || {
                let runtime = runtime::Builder::new_current_thread().enable_all().build();
                runtime
                    .context("cannot start clients")?
                    .block_on(ask_all(visited, store, &until, &tell));
                Ok(())
            })
            .context("cannot start a thread")?;
        Ok(Self { over, seen, thread })
    }

    /// What they saw since this was asked last.
    pub(super) fn look(&self) -> Window {
        let mut seen = lock(&self.seen);
        let requests = seen.requests.saturating_sub(seen.looked);
        seen.looked = seen.requests;
        let worst = std::mem::take(&mut seen.worst);
        Window { requests, worst }
    }

    /// Has them go when they have their answers.
    pub(super) fn end(self) -> anyhow::Result<Total> {
        self.over.store(true, Ordering::Relaxed);
        let done = self.thread.join();
        done.map_err(|_| anyhow::anyhow!("the clients panicked"))??;
        let mut seen = lock(&self.seen);
        Ok(Total {
            requests: seen.requests,
            failures: std::mem::take(&mut seen.failures),
            written: std::mem::take(&mut seen.written),
        })
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn ask_all(
    visited: SocketAddr,
    store: SocketAddr,
    over: &Arc<AtomicBool>,
    seen: &Arc<Mutex<Seen>>,
) {
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (until, tell) = (Arc::clone(over), Arc::clone(seen));
        clients.spawn(async move {
            let stayed = stay(store, number, &until, &tell).await;
            note(&tell, "a client of store", stayed);
        });
        let (until, tell) = (Arc::clone(over), Arc::clone(seen));
        clients.spawn(async move {
            let came = come_and_go(visited, &until, &tell).await;
            note(&tell, "a client of web", came);
        });
    }
    while clients.join_next().await.is_some() {}
}

/// Writes down what kept a client from going on.
fn note(seen: &Mutex<Seen>, who: &str, done: anyhow::Result<()>) {
    if let Err(error) = done {
        let line = format!("{who}: {}", one_line(error.as_ref()));
        lock(seen).failures.push(line);
    }
}

/// Writes and reads over one connection.
async fn stay(
    at: SocketAddr,
    number: u32,
    over: &AtomicBool,
    seen: &Mutex<Seen>,
) -> anyhow::Result<()> {
    let mut client = Client::connect(at).await?;
    let key = format!("client-{number}");
    let path = format!("/k/{key}");
    let mut count = 0_u64;
    while !over.load(Ordering::Relaxed) {
        count = count.saturating_add(1);
        let value = count.to_string();
        client.ask(Method::PUT, &path, &value, seen).await?;
        lock(seen).written.insert(key.clone(), value.clone());
        let read = client.ask(Method::GET, &path, "", seen).await?;
        if read != value {
            bail!("{key} is {read:?}, and {value} was written");
        }
        time::sleep(THOUGHT).await;
    }
    Ok(())
}

/// Asks a few times over each connection.
async fn come_and_go(at: SocketAddr, over: &AtomicBool, seen: &Mutex<Seen>) -> anyhow::Result<()> {
    while !over.load(Ordering::Relaxed) {
        let mut client = Client::connect(at).await?;
        for _ in 0..VISIT {
            client.ask(Method::GET, "/", "", seen).await?;
            time::sleep(THOUGHT).await;
        }
    }
    Ok(())
}

/// One connection.
pub(super) struct Client(SendRequest<Full<Bytes>>);

impl Client {
    async fn connect(at: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(at).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // How it ends is what the next request says.
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// Asks, and returns the answer.
    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: &str,
        seen: &Mutex<Seen>,
    ) -> anyhow::Result<String> {
        let start = Instant::now();
        let answer = time::timeout(PATIENCE, self.exchange(method, path, body));
        let answer = answer.await.context("no answer in ten seconds")??;
        let mut seen = lock(seen);
        seen.requests = seen.requests.saturating_add(1);
        seen.worst = seen.worst.max(start.elapsed());
        Ok(answer)
    }

    async fn exchange(&mut self, method: Method, path: &str, body: &str) -> anyhow::Result<String> {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "wharf")
            .body(Full::new(body))?;
        self.0.ready().await?;
        let response = self.0.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if status != StatusCode::OK {
            bail!("{path} is answered by {status}");
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}

/// Asks over so many connections that are all there before the first is asked: each is
/// another replica's.
pub(super) fn ask_each(at: SocketAddr, count: u64, path: &str) -> anyhow::Result<Vec<String>> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let seen = Mutex::default();
    runtime.block_on(async {
        let (mut clients, mut answers) = (Vec::new(), Vec::new());
        for _ in 0..count {
            clients.push(Client::connect(at).await?);
        }
        for client in &mut clients {
            answers.push(client.ask(Method::GET, path, "", &seen).await?);
        }
        Ok(answers)
    })
}

/// Asks once, over a connection of its own.
pub(super) fn get(at: SocketAddr, path: &str) -> anyhow::Result<String> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let seen = Mutex::default();
    runtime.block_on(async {
        let mut client = Client::connect(at).await?;
        client.ask(Method::GET, path, "", &seen).await
    })
}
