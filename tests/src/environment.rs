//! The virtualization that this machine offers, by which a test decides what it can run.

use std::fmt;
use std::path::Path;

/// The machine's virtualization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// VT-x or SVM: ordinary guests run here.
    Hardware,
    /// A /dev/kvm that interprets a guest's ring 0: only the mini guest runs here, ordinary ones in the nested lab.
    Paravirtual,
    /// No /dev/kvm: ordinary guests run in the nested lab, the mini guest does not run.
    None,
}

impl Environment {
    /// Looks at /dev/kvm and at who provides it.
    pub fn detect() -> Self {
        let module = |name: &str| Path::new("/sys/module").join(name).exists();
        if !Path::new("/dev/kvm").exists() {
            Self::None
        } else if module("kvm_intel") || module("kvm_amd") {
            Self::Hardware
        } else {
            Self::Paravirtual
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hardware => "hardware KVM (VT-x or SVM): guests run directly",
            Self::Paravirtual => {
                "paravirtual KVM: the mini guest runs directly, Debian guests run in the nested lab (QEMU TCG)"
            }
            Self::None => "no KVM: the mini guest cannot run, Debian guests run in the nested lab (QEMU TCG)",
        })
    }
}
