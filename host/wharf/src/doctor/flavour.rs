//! Judging what KVM is built on, and how fast that is.

use super::{Facts, Finding};

const CHECK: &str = "virtualisation";

pub(super) fn examine(facts: &Facts) -> Finding {
    let modules = facts.modules;
    let nested = facts.cpu_has("hypervisor");
    let hardware = |name: &str| {
        if nested {
            Finding::warning(
                CHECK,
                format!("{name}, nested: guest code at native speed, but slow exits"),
                "where exits count, run wharf on the machine itself",
            )
        } else {
            Finding::ok(
                CHECK,
                format!("{name}: guest code at native speed, exits of 1 to 2 µs"),
            )
        }
    };
    if modules.pvm {
        Finding::ok(
            CHECK,
            "PVM, without VMX or SVM: guest code at native speed, but exits of about 50 µs \
             and 40 µs for the first touch of a page",
        )
    } else if modules.intel || facts.cpu_has("vmx") {
        hardware("Intel VMX")
    } else if modules.amd || facts.cpu_has("svm") {
        hardware("AMD SVM")
    } else {
        Finding::warning(
            CHECK,
            "none that wharf knows",
            "expect guests to run, but measure how fast: wharf knows VMX, SVM and PVM",
        )
    }
}

#[cfg(test)]
mod tests {
    use crate::doctor::facts::fixtures::machine;
    use crate::doctor::{Facts, Finding, KvmModules, Level};

    #[test]
    fn each_flavour_is_told_with_its_speed() {
        let intel = KvmModules {
            intel: true,
            ..KvmModules::default()
        };
        let amd = KvmModules {
            amd: true,
            ..KvmModules::default()
        };
        let pvm = KvmModules {
            pvm: true,
            ..KvmModules::default()
        };
        for (flags, modules, level, found) in [
            ("vmx", intel, Level::Ok, "Intel VMX: "),
            ("svm", amd, Level::Ok, "AMD SVM: "),
            ("svm hypervisor", amd, Level::Warning, "AMD SVM, nested: "),
            ("hypervisor", pvm, Level::Ok, "PVM, "),
            (
                "fpu",
                KvmModules::default(),
                Level::Warning,
                "none that wharf knows",
            ),
        ] {
            let Finding {
                level: actual,
                finding,
                ..
            } = super::examine(&Facts {
                cpuinfo: format!("flags\t\t: {flags}\n"),
                modules,
                ..machine()
            });
            assert_eq!(actual, level);
            assert!(finding.starts_with(found), "{finding}");
        }
    }
}
