//! Runs the mini guest (crate `mini-guest`) in the real processes, started as dom0 starts them, without dom0.
//!
//! | module | does |
//! |---|---|
//! | [`child`] | starts one process with its control socket, sends its start message, waits for its events |
//! | [`resource_usage`] | a process's use of the host |
//! | [`machine`] | a whole domain: runner, block and net backends, the test's end of COM1 |
//! | [`report`] | what the guest says, line by line |
//! | [`tap`] | a tap in a network namespace of the test's own |

pub mod child;
pub mod machine;
pub mod report;
pub mod resource_usage;
pub mod tap;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The folder with Domus' programs: `DOMUS_BIN`, or built now with profile `lab`.
///
/// # Panics
/// If they do not build: no test can go on without them.
pub fn programs() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            if let Some(folder) = std::env::var_os("DOMUS_BIN") {
                return folder.into();
            }
            let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.args(["build", "--quiet", "--profile", "lab", "--bins"]);
            for package in ["domu-runner", "domus-block", "domus-net", "domus-console"] {
                cargo.args(["--package", package]);
            }
            let built = cargo.current_dir(&root).status();
            assert!(built.is_ok_and(|status| status.success()), "the programs of Domus do not build");
            let target =
                std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
            target.join("lab")
        })
        .clone()
}
