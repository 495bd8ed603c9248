//! The control domain: owns every host resource, starts and supervises each domain's processes.
//!
//! dom0 opens what a domain needs (images, taps, kernels, `/dev/kvm`) and hands the descriptors out; it has no access
//! to guest memory and parses nothing that a guest can write. The same code runs as a service (the binary `dom0`)
//! and embedded in a command (`domus run`).
//!
//! | module | does |
//! |---|---|
//! | [`config`] | a domain's JSON file, checked |
//! | [`domain`] | one domain: its state machine, what it is built of, its task |
//! | [`guests`] | which domains start with the host, and how all end with it |
//! | [`events`] | what has happened, for those who follow |
//! | [`journal`], [`log`] | lines about a domain, beside those of its units or in a file of its own |
//! | [`metrics`] | what Prometheus reads |
//! | [`networks`] | networks that NICs name: bridges with addresses and a way out |
//! | [`registry`] | all domains of one dom0 |
//! | [`resources`] | files, taps, sockets, the run directory |
//! | [`switches`] | switches in user space, shared by domains |
//! | [`succession`] | another version of dom0 in its place |
//! | [`supervisor`] | processes |
//! | [`api`] | the Varlink interface `org.domus.Dom0` |
//! | [`child`] | dom0's end of a child's control socket |
//! | [`clock`] | times, as they are written |
//! | [`fault`] | where a test can kill it |
//! | [`commons`], [`backoff`] | what all domains share; how soon what has died is started again |

pub mod api;
pub mod backoff;
pub mod child;
pub mod clock;
pub mod commons;
pub mod config;
pub mod domain;
pub mod events;
pub mod fault;
pub mod guests;
pub mod journal;
pub mod log;
pub mod metrics;
pub mod networks;
pub mod notify;
pub mod registry;
pub mod resources;
pub mod say;
pub mod succession;
pub mod supervisor;
pub mod switches;
