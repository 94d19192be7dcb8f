//! The program behind the commands that concern many guests: it has the server and
//! the compiler of policies. `wharf` starts it.

fn main() -> std::process::ExitCode {
    wharf::cli::main(wharf::cli::host)
}
