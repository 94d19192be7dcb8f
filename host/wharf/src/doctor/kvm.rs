//! Judging KVM: is it there, may we, which kind, what can it do, does it run.

use nix::errno::Errno;
use wharf_machine::probe::{Capability, Probe};

use super::{Facts, Finding, flavour};

const DEVICE: &str = "/dev/kvm";
const API: &str = "KVM API";
const TRIAL: &str = "a guest's run";

/// The only version there has ever been since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Everything about KVM. When it does not open, why not is all there is to say.
pub(super) fn examine(facts: &Facts) -> Vec<Finding> {
    let probe = match &facts.kvm {
        Ok(probe) => probe,
        Err(errno) => return vec![closed(facts, *errno)],
    };
    let mut findings = vec![
        Finding::ok(DEVICE, "opens"),
        api(probe),
        flavour::examine(facts),
    ];
    findings.extend(probe.capabilities.iter().map(capability));
    findings.push(match &facts.trial {
        Ok(time) => Finding::ok(
            TRIAL,
            format!(
                "a guest booted, ran and ended within {:.1} ms",
                time.as_secs_f64() * 1000.0
            ),
        ),
        Err(error) => Finding::missing(
            TRIAL,
            format!("the trial guest did not run: {error}"),
            "mend what is missing above; if nothing is, look for KVM in the kernel's log (dmesg)",
        ),
    });
    findings
}

fn closed(facts: &Facts, errno: Errno) -> Finding {
    let reason = errno.desc();
    match errno {
        Errno::ENOENT => Finding::missing(DEVICE, "is not there", absent(facts)),
        Errno::EACCES => Finding::missing(
            DEVICE,
            format!("does not open: {reason}"),
            "if its group is kvm, join it and log in anew: sudo usermod -aG kvm \"$USER\"; \
             if it is root's alone: sudo setfacl -m u:\"$USER\":rw /dev/kvm",
        ),
        Errno::EPERM => Finding::missing(
            DEVICE,
            format!("does not open: {reason}"),
            "a container's rules forbid it: start the container with --device /dev/kvm",
        ),
        Errno::ENODEV | Errno::ENXIO => {
            Finding::missing(DEVICE, format!("has no driver: {reason}"), load(facts))
        }
        Errno::EBUSY => Finding::missing(
            DEVICE,
            format!("does not open: {reason}"),
            "another hypervisor holds the CPU's virtualisation: stop it (VirtualBox, VMware)",
        ),
        _ => Finding::missing(
            DEVICE,
            format!("does not open: {reason}"),
            "look for KVM in the kernel's log (dmesg)",
        ),
    }
}

/// What to do when there is no device.
fn absent(facts: &Facts) -> String {
    let modules = facts.modules;
    if modules.intel || modules.amd || modules.pvm {
        "KVM is loaded, so this is a container without the device: \
         start it with --device /dev/kvm"
            .to_owned()
    } else {
        load(facts)
    }
}

/// What to do when there is no driver.
fn load(facts: &Facts) -> String {
    if facts.cpu_has("vmx") {
        "load the module: sudo modprobe kvm_intel".to_owned()
    } else if facts.cpu_has("svm") {
        "load the module: sudo modprobe kvm_amd".to_owned()
    } else if facts.cpu_has("hypervisor") {
        "this is a virtual machine without virtualisation of its own: enable nested \
         virtualisation for it, or use a kernel that has kvm_pvm"
            .to_owned()
    } else {
        "enable Intel VT-x or AMD-V (SVM) in the machine's firmware set-up".to_owned()
    }
}

fn api(probe: &Probe) -> Finding {
    match probe.api_version {
        API_VERSION => Finding::ok(API, "version 12"),
        other => Finding::missing(
            API,
            format!("version {other} instead of 12"),
            "this is not Linux's own KVM: use a kernel that has it",
        ),
    }
}

fn capability(capability: &Capability) -> Finding {
    let Capability {
        name,
        purpose,
        required,
        present,
    } = *capability;
    match (present, required) {
        (true, _) => Finding::ok(name, format!("for {purpose}")),
        (false, true) => Finding::missing(
            name,
            format!("not there, and no guest runs without it: {purpose}"),
            "use a newer kernel: Linux 5.10 or later has it",
        ),
        (false, false) => Finding::warning(
            name,
            format!("not there: {purpose}"),
            "guests run; for this, use a newer kernel",
        ),
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use crate::doctor::facts::fixtures::machine;
    use crate::doctor::{Facts, KvmModules, Level};

    const NO_MODULES: KvmModules = KvmModules {
        kvm: false,
        intel: false,
        amd: false,
        pvm: false,
    };

    fn with_flags(flags: &str, modules: KvmModules) -> Facts {
        Facts {
            cpuinfo: format!("flags\t\t: {flags}\n"),
            modules,
            ..machine()
        }
    }

    /// The only finding on a machine whose device does not open.
    fn closed(errno: Errno, flags: &str, modules: KvmModules) -> (String, String) {
        let facts = Facts {
            kvm: Err(errno),
            ..with_flags(flags, modules)
        };
        let findings = super::examine(&facts);
        let [finding] = findings.as_slice() else {
            panic!("{findings:?}")
        };
        assert_eq!(finding.level, Level::Missing);
        (finding.finding.clone(), finding.advice.clone().unwrap())
    }

    #[test]
    fn a_closed_device_says_how_to_open_it() {
        let pvm = KvmModules {
            kvm: true,
            pvm: true,
            ..NO_MODULES
        };
        for (errno, flags, modules, found, advice) in [
            (
                Errno::ENOENT,
                "vmx",
                NO_MODULES,
                "is not there",
                "modprobe kvm_intel",
            ),
            (
                Errno::ENOENT,
                "svm",
                NO_MODULES,
                "is not there",
                "modprobe kvm_amd",
            ),
            (
                Errno::ENOENT,
                "hypervisor",
                NO_MODULES,
                "is not there",
                "nested",
            ),
            (Errno::ENOENT, "fpu", NO_MODULES, "is not there", "firmware"),
            (
                Errno::ENOENT,
                "fpu",
                pvm,
                "is not there",
                "--device /dev/kvm",
            ),
            (
                Errno::ENODEV,
                "vmx",
                NO_MODULES,
                "has no driver",
                "modprobe kvm_intel",
            ),
            (
                Errno::EACCES,
                "vmx",
                pvm,
                "Permission denied",
                "usermod -aG kvm",
            ),
            (
                Errno::EPERM,
                "vmx",
                pvm,
                "not permitted",
                "--device /dev/kvm",
            ),
            (Errno::EBUSY, "vmx", pvm, "busy", "another hypervisor"),
            (Errno::EIO, "vmx", pvm, "does not open", "dmesg"),
        ] {
            let (actual_found, actual_advice) = closed(errno, flags, modules);
            assert!(actual_found.contains(found), "{actual_found}");
            assert!(actual_advice.contains(advice), "{actual_advice}");
        }
    }

    #[test]
    fn what_kvm_lacks_matters_when_guests_need_it() {
        let mut facts = machine();
        for capability in &mut facts.kvm.as_mut().unwrap().capabilities {
            capability.present = false;
        }
        let findings = super::examine(&facts);
        let level = |name| {
            findings
                .iter()
                .find(|finding| finding.check == name)
                .unwrap()
                .level
        };
        assert_eq!(level("KVM_CAP_USER_MEMORY"), Level::Missing);
        assert_eq!(level("KVM_CAP_XSAVE"), Level::Warning);
    }

    #[test]
    fn another_api_or_a_failed_trial_is_fatal() {
        let mut facts = Facts {
            trial: Err("no VM".to_owned()),
            ..machine()
        };
        facts.kvm.as_mut().unwrap().api_version = 11;
        let fatal: Vec<_> = super::examine(&facts)
            .into_iter()
            .filter(|finding| finding.level == Level::Missing)
            .map(|finding| finding.finding)
            .collect();
        assert_eq!(
            fatal,
            [
                "version 11 instead of 12",
                "the trial guest did not run: no VM"
            ]
        );
    }
}
