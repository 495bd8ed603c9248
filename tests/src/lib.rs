//! Launches the real processes on real ground: the nested lab's outer machine, its guests, and what is asked of them.
//!
//! The binary `domus-lab` runs the scenarios; the tools (`cargo xtask`) make the images, start the outer machine and count.

pub mod checks;
pub mod ground;
pub mod guest;
pub mod images;
pub mod lab;
pub mod link;
pub mod mini;
pub mod outer;
pub mod report;
pub mod smoke;
pub mod strangers;
