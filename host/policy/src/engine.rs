//! The wasmtime engine, set up for many small components that answer quickly, and
//! the clock that ends calls which do not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::Duration;

use wasmtime::component::Linker;
use wasmtime::{
    Cache, CacheConfig, Config, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
};

use crate::bindings::log;
use crate::sandbox::Sandbox;

/// Memory that a plugin may have, in bytes.
pub(crate) const MEMORY_LEN: usize = 16 << 20;

/// Elements that a plugin's tables may have, each.
pub(crate) const TABLE_LEN: usize = 10_000;

/// Instances that may live at once: three slots with one in force, its predecessor,
/// three candidates and one that comes back, and a few that are being dropped.
const INSTANCES: u32 = 24;

/// Core instances in one component. Rust and C make 4 at most; Python makes more
/// than 32.
const CORE_INSTANCES: u32 = 48;

/// How often the epoch is advanced while calls are made: calls are ended so much
/// late at most. Twice a millisecond would take 1 % of a core here.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// The ticker stops after so many ticks without a call.
const QUIET_TICKS: u32 = 100;

/// An engine could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// wasmtime refuses the machine or the settings.
    #[error("policies cannot be run on this machine: {0:#}")]
    Wasmtime(wasmtime::Error),
    /// No thread for the ticker.
    #[error("no thread for the clock of policies")]
    Thread(#[source] std::io::Error),
}

/// What compiles and runs plugins. Cheap to clone; costs 5 ms to make, so it is
/// only made when there is a plugin.
#[derive(Clone)]
pub struct Engine {
    pub(crate) wasmtime: wasmtime::Engine,
    pub(crate) linker: Arc<Linker<Sandbox>>,
    ticker: Arc<Ticker>,
}

impl Engine {
    /// Sets one up. Compiled plugins are kept in `cache`, when there is one.
    ///
    /// # Errors
    ///
    /// When the machine has not what that takes. A cache that cannot be used is no
    /// error: it is said in the log.
    pub fn new(cache: Option<&Path>) -> Result<Self, EngineError> {
        let mut pool = PoolingAllocationConfig::new();
        let cores = INSTANCES.saturating_mul(4);
        pool.total_component_instances(INSTANCES)
            .total_core_instances(cores)
            .total_memories(INSTANCES)
            .total_tables(cores)
            .max_core_instances_per_component(CORE_INSTANCES)
            .max_tables_per_component(CORE_INSTANCES)
            .table_elements(TABLE_LEN)
            .max_memory_size(MEMORY_LEN)
            .linear_memory_keep_resident(256 << 10)
            .table_keep_resident(16 << 10);
        let mut config = Config::new();
        config
            .cranelift_opt_level(OptLevel::Speed)
            .concurrency_support(false)
            .epoch_interruption(true)
            .wasm_component_model(true)
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        if let Some(directory) = cache {
            let mut cache = CacheConfig::new();
            cache.with_directory(directory);
            match Cache::new(cache) {
                Ok(cache) => {
                    config.cache(Some(cache));
                }
                Err(e) => ::log::warn!("compiled policies are not kept: {e:#}"),
            }
        }
        let wasmtime = wasmtime::Engine::new(&config).map_err(EngineError::Wasmtime)?;
        let mut linker = Linker::new(&wasmtime);
        log::add_to_linker::<_, Sandbox>(&mut linker, |sandbox| sandbox)
            .map_err(EngineError::Wasmtime)?;
        let ticker = Ticker::start(&wasmtime)?;
        Ok(Self {
            wasmtime,
            linker: Arc::new(linker),
            ticker,
        })
    }

    /// Sees to it that the epoch advances until what it returns is dropped.
    pub(crate) fn calling(&self) -> Calling<'_> {
        self.ticker.calling()
    }
}

/// Where compiled plugins are kept: in the user's cache, which is nobody else's to
/// write.
#[must_use]
pub fn default_cache() -> Option<PathBuf> {
    let absolute = |name| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("wharf").join("plugins"))
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

/// A call that is being made.
#[must_use]
pub(crate) struct Calling<'a>(&'a Ticker);

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Release);
    }
}

/// Advances the epoch, but only while calls are made: a host whose guests sleep
/// sleeps too.
struct Ticker {
    /// Calls that were begun, ever; wraps.
    calls: AtomicU64,
    /// Those of them that are over. While one is not, there is no end to it but the
    /// epoch, however long it takes and however few begin.
    ended: AtomicU64,
    parked: AtomicBool,
    thread: std::sync::OnceLock<Thread>,
}

impl Ticker {
    fn start(engine: &wasmtime::Engine) -> Result<Arc<Self>, EngineError> {
        let ticker = Arc::new(Self {
            calls: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            parked: AtomicBool::new(false),
            thread: std::sync::OnceLock::new(),
        });
        let engine = engine.weak();
        let weak = Arc::downgrade(&ticker);
        let thread = std::thread::Builder::new()
            .name("policy clock".to_owned())
            .spawn(move || {
                let mut quiet = 0_u32;
                let mut seen = 0;
                while let (Some(ticker), Some(engine)) = (weak.upgrade(), engine.upgrade()) {
                    engine.increment_epoch();
                    drop(engine);
                    let ended = ticker.ended.load(Ordering::Acquire);
                    let calls = ticker.calls.load(Ordering::Relaxed);
                    quiet = if calls == seen && calls == ended {
                        quiet.saturating_add(1)
                    } else {
                        0
                    };
                    seen = calls;
                    if quiet < QUIET_TICKS {
                        drop(ticker);
                        std::thread::sleep(TICK);
                        continue;
                    }
                    // Says so, then looks again: a caller either sees the flag or
                    // is seen here.
                    ticker.parked.store(true, Ordering::SeqCst);
                    let again = ticker.calls.load(Ordering::SeqCst) != seen;
                    drop(ticker);
                    if !again {
                        std::thread::park();
                    }
                    if let Some(ticker) = weak.upgrade() {
                        ticker.parked.store(false, Ordering::SeqCst);
                    }
                    quiet = 0;
                }
            })
            .map_err(EngineError::Thread)?;
        // Set before any call can be made.
        let _ = ticker.thread.set(thread.thread().clone());
        Ok(ticker)
    }

    fn calling(&self) -> Calling<'_> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        Calling(self)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}
