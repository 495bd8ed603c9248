//! The Varlink interface `org.domus.Dom0`, as dom0 serves it. Its types and the client's side are the crate
//! `domus-api`.
//!
//! The service describes itself (`varlinkctl introspect`). Whoever may connect may ask; only root, or the user that
//! dom0 runs as, may change anything or have dom0 look at files.
//!
//! | module | does |
//! |---|---|
//! | `server` | the socket: who may connect, and with which rights |
//! | `service` | the calls, one method each |
//! | `bounded` | a stream that refuses a call without end |
//! | `domains`, `disks`, `nets`, `cpus` | the interface's types made of dom0's own |
//! | `machine`, `events` | requests to a runner; a stream of events |
//! | `reach` | what processes could reach |
//! | `limits` | limits of disks and NICs, by name |
//! | `statistics` | the counters of all domains |
//! | `errors` | the interface's errors from dom0's own |

mod bounded;
mod cpus;
mod disks;
mod domains;
mod errors;
mod events;
mod limits;
mod machine;
mod nets;
mod peer;
mod reach;
mod server;
mod service;
mod statistics;

pub use server::{Server, ServerError};
pub use statistics::Samples;
