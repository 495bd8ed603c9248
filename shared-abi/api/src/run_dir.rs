//! Where a client finds dom0.

use std::path::{Path, PathBuf};

/// Where dom0 keeps its run directory if neither side is told otherwise.
pub fn default_run_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/run/domus".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_absolute() => Path::new(&dir).join("domus"),
        _ => format!("/tmp/domus-{}", nix::unistd::geteuid()).into(),
    }
}

/// The socket of the dom0 that has this run directory.
pub fn api_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("dom0.sock")
}
