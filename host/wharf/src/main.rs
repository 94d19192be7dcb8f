//! The `wharf` command. Everything is in the library; see `wharf::cli`.

fn main() -> std::process::ExitCode {
    wharf::cli::main()
}
