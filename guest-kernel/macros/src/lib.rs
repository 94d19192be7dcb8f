//! The attribute `#[wharf::main]`; see `wharf-rt`, which re-exports it, for its
//! manual.
//!
//! This crate must never know: what the items that it emits do. It refers to
//! all of them by `::wharf::__rt`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod arguments;
mod entry;
mod size;

use proc_macro::TokenStream;

/// Makes a function the unikernel's main function, and writes its manifest.
#[proc_macro_attribute]
pub fn main(arguments: TokenStream, item: TokenStream) -> TokenStream {
    entry::expand(arguments.into(), item.into())
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}
