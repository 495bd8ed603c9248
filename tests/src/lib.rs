//! Launches the real processes on real hosts: the nested lab's machine, its guests, and the checks on them.
//!
//! The binary `domus-lab` runs the scenarios. The tools (`cargo xtask`) make the images, start the lab's machine and
//! count results.

pub mod checks;
pub mod environment;
pub mod guest;
pub mod images;
pub mod lab;
pub mod lab_vm;
pub mod link;
pub mod mini;
pub mod qemu_interop;
pub mod report;
pub mod smoke;
