//! What is at the other ends of a backend: a driver and its frontend, and dom0 at the control socket.
//!
//! | module | does |
//! |---|---|
//! | [`memory`] | a guest's memory: a memory file, mapped here |
//! | [`ring`] | a split virtqueue: a path made to be fast, and knobs to lie with |
//! | [`event`] | a ring's eventfds |
//! | [`frontend`] | the vhost-user messages that set a device up |
//! | [`block`] | a driver and frontend of disks |
//! | [`net`] | a driver and frontend of NICs |
//! | [`frames`] | what NICs carry |
//! | [`console`] | a driver and frontend of consoles |
//! | [`control`] | a child's control socket as dom0 uses it |
//! | [`process`] | a program that does not outlive its test |
//!
//! It is made for tests that attack: whatever a guest or a frontend could send can be sent with it, and nothing is
//! checked that a device must check. It promises to wait for nothing longer than [`PATIENCE`], unless it says so, and
//! to take no answer for granted: what must not happen is an error, or a panic in the drivers of devices and in
//! [`ring`].

pub mod block;
pub mod console;
pub mod control;
pub mod event;
pub mod frames;
pub mod frontend;
pub mod memory;
pub mod net;
pub mod process;
pub mod ring;

use std::time::Duration;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);
