//! Clients that ask all the time, and notice what fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::host::poll;
use crate::http::Client;

/// Clients, each on its own connection, that ask until they are told to end.
#[derive(Debug)]
pub struct Load {
    over: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Result<u64, String>>>,
}

impl Load {
    /// So many that ask without a pause.
    #[must_use]
    pub fn start(port: u16, clients: usize, path: &'static str) -> Self {
        Self::thinking(port, clients, path, Duration::ZERO)
    }

    /// So many that think for so long between two requests.
    ///
    /// # Panics
    ///
    /// When nobody listens.
    #[must_use]
    pub fn thinking(port: u16, clients: usize, path: &'static str, think: Duration) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(AtomicU64::new(0));
        let client = |_| {
            let (over, answers) = (Arc::clone(&over), Arc::clone(&answers));
            let mut client = Client::of(port);
            thread::spawn(move || {
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    match client.ask("GET", path, b"") {
                        Ok((200, _)) => count += 1,
                        other => return Err(format!("after {count} answers: {other:?}")),
                    }
                    answers.fetch_add(1, Ordering::Relaxed);
                    if !think.is_zero() {
                        thread::sleep(think);
                    }
                }
                Ok(count)
            })
        };
        let clients = (0..clients).map(client).collect();
        Self {
            over,
            answers,
            clients,
        }
    }

    /// Waits until so many more answers have come.
    ///
    /// # Panics
    ///
    /// When they do not.
    pub fn until_more(&self, count: u64) {
        let wanted = self.answers.load(Ordering::Relaxed) + count;
        let came = poll(|| (self.answers.load(Ordering::Relaxed) >= wanted).then_some(()));
        came.expect("clients are answered");
    }

    /// Has them end; every request was answered. Returns how many there were.
    ///
    /// # Panics
    ///
    /// When one was not.
    #[expect(
        clippy::must_use_candidate,
        reason = "often it is enough that all were answered"
    )]
    pub fn end(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        let counts = self.clients.into_iter();
        let count = |it: JoinHandle<_>| it.join().expect("a client does not panic");
        counts.map(|it| count(it).expect("no request fails")).sum()
    }
}
