//! Ports of the loopback interface.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// A port that nobody has; who asks again gets another one.
///
/// # Panics
///
/// When all are taken.
#[must_use]
pub fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Below those that the kernel gives to clients, and apart from other runs.
    let spread = u16::try_from(std::process::id() % 1000).expect("below 1,000") * 10;
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(|| 20_000 + spread + NEXT.fetch_add(1, Ordering::Relaxed))
        .take(1_000)
        .find(is_free)
        .expect("a port is free")
}
