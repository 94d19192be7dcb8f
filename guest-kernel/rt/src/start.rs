//! From the entry point to main, and from main to the end.
//!
//! The entry symbol `_start` is emitted into the user's crate by
//! [`main`](crate::main), as a plain `extern "C" fn`: the host sets up the stack
//! and the registers that such a function needs. All it does is to call one of
//! the two functions here.

use wharf_abi::{AbiVersion, BootPage};

use crate::boot::BootPointer;
use crate::{ExitCode, Spawner, Termination, console, device, executor, exit};

/// Runs a main function that is no `async fn`.
pub fn start<T: Termination>(page: BootPointer, main: impl FnOnce() -> T) -> ! {
    accept(page);
    exit(main().report().get())
}

/// Runs a main function that is an `async fn`, and whatever tasks it spawns
/// until it ends.
pub fn start_async<F>(page: BootPointer, main: impl FnOnce(Spawner) -> F) -> !
where
    F: Future<Output: Termination> + 'static,
{
    accept(page);
    executor::run(|spawner| {
        let main = main(spawner);
        async {
            let status = main.await.report();
            device::flush();
            exit(status.get())
        }
    })
}

/// Keeps the boot page, or ends the guest when it is none that this runtime can
/// read.
fn accept(pointer: BootPointer) {
    let page = pointer.read();
    if page.magic != BootPage::MAGIC || !page.abi.runs(AbiVersion::CURRENT) {
        console::write(b"wharf: the host's boot page is of another version\n");
        exit(ExitCode::PANIC.get());
    }
    pointer.keep();
}
