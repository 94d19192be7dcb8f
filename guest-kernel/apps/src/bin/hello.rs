//! Greets whomever its arguments name.
#![no_std]
#![no_main]
#[wharf::main]
fn main() {
    match wharf::args() {
        args if args.len() == 0 => wharf::println!("Hello from wharf!"),
        args => wharf::println!("Hello, {args}!"),
    }
}
