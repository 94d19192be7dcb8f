//! Judging what builds plugins. Nothing is installed here, and plugins that are
//! built already run without any of it.

use super::Finding;
use crate::build::toolchain::{Facts, Step, advice, plan};

const PLUGINS: &str = "plugins";

pub(super) fn examine(facts: Facts) -> Finding {
    match plan(facts).first() {
        Some(Step::Use(toolchain)) => Finding::ok(PLUGINS, format!("built with {toolchain}")),
        Some(step) => Finding::warning(
            PLUGINS,
            "nothing compiles to WebAssembly yet",
            format!("the first `wharf build` of a plugin tries {step}; or do it now"),
        ),
        None => Finding::warning(
            PLUGINS,
            "nothing compiles to WebAssembly: plugins cannot be built",
            advice(facts),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::examine;
    use crate::build::toolchain::{Apt, Facts};
    use crate::doctor::Level;

    #[test]
    fn what_would_be_done_is_told_and_not_done() {
        let none = Facts::default();
        let has_target = true;
        let has_packages = true;
        let has_rustup = true;
        let apt = Apt::Ready;
        let not_root = Apt::NotRoot;
        for (facts, level, told) in [
            (
                Facts { has_target, ..none },
                Level::Ok,
                "wasm32-unknown-unknown",
            ),
            (
                Facts {
                    has_packages,
                    ..none
                },
                Level::Ok,
                "rustc-web",
            ),
            (
                Facts { has_rustup, ..none },
                Level::Warning,
                "rustup target add",
            ),
            (
                Facts { apt, ..none },
                Level::Warning,
                "tries `apt-get install",
            ),
            (
                Facts {
                    apt: not_root,
                    ..none
                },
                Level::Warning,
                "as root",
            ),
            (none, Level::Warning, "https://rustup.rs"),
        ] {
            let finding = examine(facts);
            assert_eq!(finding.level, level, "{finding:?}");
            let text = finding.advice.unwrap_or(finding.finding);
            assert!(text.contains(told), "{text}");
        }
    }
}
