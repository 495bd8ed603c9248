//! The other ends of a backend, for tests: a driver with its frontend, and dom0 at the control socket.
//!
//! | module | does |
//! |---|---|
//! | [`memory`] | a guest's memory: a memory file, mapped here |
//! | [`ring`] | a split virtqueue: a path made to be fast, and knobs to lie with |
//! | [`event`] | a ring's eventfds |
//! | [`frontend`] | the vhost-user messages that set a device up |
//! | [`block`] | a driver and frontend of disks |
//! | [`net`] | a driver and frontend of NICs |
//! | [`frames`] | the frames that NICs carry |
//! | [`console`] | a driver and frontend of consoles |
//! | [`control`] | a child's control socket as dom0 uses it |
//! | [`process`] | a program that does not outlive its test |
//!
//! It is made for tests that attack: a test can send whatever a guest or a frontend could send, and nothing is checked
//! here that a device must check. It promises to wait for nothing longer than [`PATIENCE`], unless a function says so,
//! and to take no answer for granted: what must not happen is an error, or a panic in [`ring`] and in the drivers of
//! devices.

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

/// The longest wait for an event that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);
