//! What happens when a guest panics: a report, then exit status 101.

#![expect(
    unsafe_code,
    reason = "exports the symbols that unwinding code refers to"
)]

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::{ExitCode, console, exit, println};

/// Whether a panic is being reported already.
static PANICKING: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if PANICKING.swap(true, Ordering::Relaxed) {
        // The first panic's message panicked as it was formatted: a second try
        // at formatting anything might end here again.
        console::write(b"panicked while it reported a panic\n");
    } else {
        // Two writes, so that the place is out before the message can panic.
        if let Some(location) = info.location() {
            println!("panicked at {location}:");
        }
        println!("{}", info.message());
    }
    exit(ExitCode::PANIC.get())
}

/// Named by the unwind tables of `core` and `alloc`, which are compiled with
/// unwinding. A guest aborts on panic, so nothing ever calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() -> ! {
    exit(ExitCode::PANIC.get())
}

/// Named by the landing pads of `core` and `alloc`; as [`rust_eh_personality`].
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    exit(ExitCode::PANIC.get())
}
