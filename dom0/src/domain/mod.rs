//! Domains.
//!
//! ```text
//!   Handle ── wishes, calls ──▶ Domain (one task) ── lifecycle: what next? ──▶ Machine ──▶ runner, backends
//!     ▲                              │                                            │
//!     └────────── View ──────────────┴──────────────── Notice ◀───────────────────┘
//! ```
//!
//! A [`task::Domain`] is what an operator has named: its config, its policies, its state. A [`machine::Machine`] is
//! what runs of it, from one start of the guest to the next.

mod adopt;
pub mod check;
pub mod directory;
pub mod dump;
pub mod environment;
pub mod error;
pub mod events;
pub mod handle;
pub mod lifecycle;
pub mod machine;
mod pending;
pub mod record;
mod rename;
mod restart;
pub mod task;
mod verb;
pub mod view;

pub use handle::Handle;
pub use task::Domain;
pub use view::View;
