//! The `wharf` command: what runs one guest, and the way to `wharf-host`. Everything
//! is in the library; see `wharf::cli`.

fn main() -> std::process::ExitCode {
    wharf::cli::main(wharf::cli::hand_over)
}
