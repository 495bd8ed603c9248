//! A switch in user space: each port is a vhost-user-net device, and a frame goes from one guest's memory to another's
//! with one copy and without the kernel's network.
//!
//! ```text
//!   guest A ══ transmit ring ══▶ ┌──────────────── data thread ────────────────┐ ══ receive ring ══▶ guest B
//!                                │ header ▶ filter ▶ limits ▶ table ▶ one copy │ ══ receive ring ══▶ guest C
//!   runners ── vhost-user ─────▶ connection threads ── queues ──▶ │            │
//!   dom0 ───── control ────────▶ main thread ──────── ports ────▶ │            │
//! ```
//!
//! The price is isolation: this process maps the RAM of all its guests, so a guest that takes the process over controls
//! them all. So a domain is on a switch only if its config names the switch.
//!
//! One thread moves all frames, so no state on their way is shared or locked. The threads of the connections are made
//! before the seal, one for each of [`MAX_PORTS`] ports.
//!
//! Promised:
//! - A guest with invalid rings stops only its own traffic, and a frontend that breaks the protocol loses only its own
//!   port ([`SwitchEvent::PortFailed`](shared_abi::control::SwitchEvent)). Memory that could shrink under this process
//!   is refused.
//! - A guest's frames are filtered as by `domus-net`, on a private copy of the frame's head, and that copy is sent. A
//!   MAC address that dom0 has given to a port leads to that port alone, whichever port sends from it.
//! - A receiver without room delays its sender for a moment ([`forward::HOLD`]) and then loses frames; it never delays
//!   ports that send to others. A frame for all ports waits for no receiver.
//! - No thread that works for several ports waits for one: the kernel signals their eventfds ([`vu_server::aio`]). If
//!   the data thread stands still nevertheless, the process ends, so that dom0 starts another.
//! - An idle switch costs nothing.
//!
//! Its NICs have one queue pair and no control queue: their drivers have nothing to set. After a switch has died, dom0
//! plugs all ports again with new sockets, and the guests go on from their used rings.
//!
//! | module | does |
//! |---|---|
//! | [`start`], [`syscalls`] | the start-up contract |
//! | [`control`] | what dom0 asks: plug, unplug, limits, link, numbers |
//! | [`connection`] | the threads that frontends talk to |
//! | [`nic`] | the device behind a connection, and what its threads share |
//! | [`forward`] | the data thread: who gets a frame, and the copy |
//! | [`beat`], [`sync`] | whether the data thread moves |

pub mod beat;
pub mod connection;
pub mod control;
pub mod forward;
pub mod nic;
pub mod start;
pub mod sync;
pub mod syscalls;

/// Most ports of one switch.
pub const MAX_PORTS: usize = 64;
