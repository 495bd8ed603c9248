//! The console of one domain: what the guest prints is kept, shown to many, and answered by one.
//!
//! ```text
//!            stream socket                     tty.sock, frames of shared_abi::console
//! runner's UART ◀───────▶ serial ─ history ─▶ client, client (writer), client …
//!                                  └────────▶ log file
//! ```
//!
//! A client that attaches late gets the history first. A client that reads too slowly is told how many bytes it
//! lost and stays attached: it never slows the guest or the others, and costs no more memory than one chunk.
//! When the guest's side closes, clients get the rest and [`End`](shared_abi::console::ServerFrame::End);
//! the process goes on, so that a console attached after a crash still shows the last words.
//!
//! | module | does |
//! |---|---|
//! | [`history`], [`session`], [`console`] | all decisions, without I/O |
//! | [`server`], [`log`] | sockets, one `poll` loop, the log file |
//! | [`start`] | one console for dom0, sealed |
//! | [`virtio`], [`relay`] | the same console as a vhost-user virtio-console device |
//! | [`standalone`], [`syscalls`] | that device for QEMU and others, sealed |

pub mod console;
pub mod history;
pub mod log;
pub mod relay;
pub mod server;
pub mod session;
pub mod standalone;
pub mod start;
pub mod syscalls;
pub mod virtio;
