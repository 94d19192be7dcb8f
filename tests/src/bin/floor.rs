//! The least that any KVM host must do, as a process: `cargo bench` compares it with
//! `wharf run hello`.

use std::process::ExitCode;

use kvm_ioctls::Kvm;
use wharf_tests::floor::first_run;

fn main() -> ExitCode {
    let guest = Kvm::new()
        .map_err(Into::into)
        .and_then(|kvm| first_run(&kvm));
    match guest {
        // As any program that has nothing more to do: the kernel tidies up.
        Ok(_guest) => std::process::exit(0),
        Err(e) => {
            eprintln!("floor: {e}");
            ExitCode::from(2)
        }
    }
}
