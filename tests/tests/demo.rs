//! The guided tour, as somebody new would take it.

use wharf_tests::command::{output, wharf};
use wharf_tests::guest::kvm;

#[test]
fn all_of_it_holds() {
    let Some(_) = kvm() else { return };
    let printed = output(&mut wharf(["demo"]));
    let (told, complained) = (&printed.stdout, &printed.stderr);
    assert_eq!(printed.status, 0, "{told}\n{complained}");
    let last = told.trim_end().lines().last().unwrap();
    let requests = last.split(' ').next().and_then(|it| it.parse::<u64>().ok());
    assert!(requests > Some(1000), "{last}");
    assert!(
        last.ends_with(" requests, 0 failed; nothing was lost"),
        "{last}"
    );
    for step in [
        "swap the scheduler",
        "swap the router",
        "shadow a candidate",
        "upgrade store, state and connections kept",
        "upgrade web as a canary",
        "roll back a faulty version",
        "freeze store",
        "clone it",
        "hand the host over",
    ] {
        // As it happened, and in the table.
        assert_eq!(told.matches(step).count(), 2, "{step}: {told}");
    }
}

#[test]
fn elsewhere_it_says_where_it_can_be_taken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let printed = output(&mut wharf(["demo", "--sources", path]));
    let told = printed.refusal();
    assert!(told.contains("clone its repository"), "{told}");
}
