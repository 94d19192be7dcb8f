//! The handler of the guest `http` as a process of its own, for benchmarks: one
//! thread, on a port of the loopback interface that is its argument.

use std::time::Duration;

use picoserve::routing::get;
use picoserve::time::Duration as Timeout;
use picoserve::{Config, Router, Server, Timeouts};
use tokio::net::TcpListener;
use tokio::task::{LocalSet, spawn_local};

const TIMEOUTS: Timeouts = Timeouts {
    start_read_request: Timeout::from_secs(30),
    persistent_start_read_request: Timeout::from_secs(60),
    read_request: Timeout::from_secs(30),
    write: Timeout::from_secs(30),
};
static CONFIG: Config = Config::new(TIMEOUTS).keep_connection_alive();

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let port: u16 = std::env::args().nth(1).unwrap().parse().unwrap();
    let router = Router::new().route("/", get(|| async { "Hello from wharf!" }));
    let router = &*Box::leak(Box::new(router));
    let serve = async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            spawn_local(async move {
                let mut buffer = vec![0; 2048];
                let server = Server::new_tokio(router, &CONFIG, &mut buffer);
                // A client that breaks off is nobody's loss.
                let _ = server.serve(stream).await;
            });
        }
    };
    // Benchmarks kill it; if they cannot, it does not stay for ever.
    let _ = tokio::time::timeout(Duration::from_secs(600), LocalSet::new().run_until(serve)).await;
}
