//! How every Domus process starts, as code: one control socket, one start message, then the sandbox.
//!
//! ```text
//! Control::listen ─▶ accept_start ─▶ (map what is needed) ─▶ sandbox::enter ─▶ (start threads)
//!      ─▶ sandbox::seal ─▶ reply(Ready) ─▶ serve, for controller after controller
//! ```
//!
//! It must not matter who started the process: no state travels by inheritance, only the path of
//! the control socket on the command line. A controller that goes away is no reason to stop: the
//! process goes on serving and accepts the next one.
//!
//! | module | does |
//! |---|---|
//! | [`link`] | one typed JSON message with descriptors in one `SOCK_SEQPACKET` datagram, both directions |
//! | [`control`] | the child's side: listen, accept one controller at a time, answer |
//! | [`fds`] | the descriptors of one message, each taken exactly once |
//! | [`EventLimit`] | a bound of what somebody else can cause: lines in a log, messages |
//! | [`lock()`], [`time`] | locks that outlive a panic, the monotonic clock |
//! | [`memfd`] | memory of a fixed size to share with other processes |
//! | [`serve()`], [`program`] | a backend from its start message to its last answer, and its `main` |
//! | [`say()`] | lines for people, to a standard error that nobody may read |
//! | [`threads`] | threads that are ready to be sealed, and one heap for them |
//! | [`sandbox`] | own uid, no capabilities, own namespaces, an empty root, a seccomp allow-list |

pub mod control;
mod event_limit;
pub mod fds;
pub mod link;
mod lock;
pub mod memfd;
pub mod sandbox;
mod say;
mod serve;
pub mod threads;
pub mod time;

pub use control::{Control, Events};
pub use event_limit::EventLimit;
pub use fds::Fds;
pub use link::{Link, LinkError};
pub use lock::lock;
pub use say::{report, say, to_raw_terminal};
pub use serve::{program, serve};
