//! What guests and their clients leave to the host: a cell whose guests took every
//! descriptor could not be told to stop one.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Descriptors that are left to clients of the control socket, log files and images
/// that are read; a quarter of them all when that is less.
const DESCRIPTORS: u64 = 80;

/// Descriptors that connections leave besides: clients must not keep guests from being
/// started; half of them all when that is less.
const DESCRIPTORS_OF_CONNECTIONS: u64 = 160;

/// Address space that is left to the host: consoles, clients, metrics. Enough for
/// the full consoles of all guests that a cell may have.
const ADDRESS_SPACE: usize = 64 << 20;

/// There is not enough left for a guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Exhausted {
    /// Descriptors.
    #[error(
        "the host's descriptors are nearly used up: raise `ulimit -n`, which is {limit}, \
         or run fewer guests"
    )]
    Descriptors {
        /// How many it may have.
        limit: u64,
    },
    /// Not even one descriptor.
    #[error("the host can open no more files")]
    Open(#[source] io::Error),
    /// Address space.
    #[error(
        "the host's memory is nearly used up: raise `ulimit -v`, which is {limit_kib}, \
         or run fewer guests"
    )]
    AddressSpace {
        /// How much it may have, as the shell says it.
        limit_kib: u64,
    },
}

/// Says whether another guest leaves enough for the host. Others may take it before
/// the guest does; what is left has room for that.
pub(crate) fn check() -> Result<(), Exhausted> {
    descriptors()?;
    address_space()
}

/// Whether a connection may keep this descriptor of its.
pub(crate) fn has_room_for(connection: BorrowedFd<'_>) -> bool {
    let limit = limit(Resource::RLIMIT_NOFILE);
    // The kernel gives out the lowest number that is free.
    let used = u64::try_from(connection.as_raw_fd()).unwrap_or(0);
    used.saturating_add(DESCRIPTORS_OF_CONNECTIONS.min(limit >> 1)) < limit
}

/// Lets this process have as many descriptors as its operator allows: the usual limit
/// is for programs that use select(2).
pub(crate) fn use_all_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // If not, there are fewer connections.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn descriptors() -> Result<(), Exhausted> {
    let limit = limit(Resource::RLIMIT_NOFILE);
    // The kernel gives out the lowest number that is free.
    let probe = File::open("/dev/null").map_err(Exhausted::Open)?;
    let used = u64::try_from(probe.as_raw_fd()).unwrap_or(0);
    if used.saturating_add(DESCRIPTORS.min(limit >> 2)) < limit {
        Ok(())
    } else {
        Err(Exhausted::Descriptors { limit })
    }
}

fn address_space() -> Result<(), Exhausted> {
    let limit = limit(Resource::RLIMIT_AS);
    if limit == RLIM_INFINITY {
        return Ok(());
    }
    // Never touched, so that it costs nothing but the asking.
    let mut probe = Vec::<u8>::new();
    let reserved = probe.try_reserve_exact(ADDRESS_SPACE);
    // Or the compiler would take a reservation that nobody uses for granted.
    std::hint::black_box(&mut probe);
    let limit_kib = limit >> 10;
    reserved.map_err(|_| Exhausted::AddressSpace { limit_kib })
}

/// A limit of this process's; none when the kernel does not say.
fn limit(resource: Resource) -> u64 {
    getrlimit(resource).map_or(RLIM_INFINITY, |(soft, _)| soft)
}
