//! The control domain: owns every host resource, starts and supervises each domain's processes.
//!
//! dom0 opens what a domain needs (images, taps, kernels, `/dev/kvm`) and hands the descriptors out; it has no access
//! to guest memory and parses nothing that a guest can write. The same code runs as a service (the binary `dom0`)
//! and embedded in a command (`domus run`).
//!
//! The modules are layers, lowest first; a file imports from lower layers and from its own folder only, and
//! `tests/layers.rs` fails on an import that runs upwards.
//!
//! | layer | holds |
//! |---|---|
//! | [`value`] | values without I/O: names, sizes, rates, CPU sets, places in a config |
//! | [`log`] | lines in the journal, in a domain's file, on standard error |
//! | [`host`] | files, locks, links, sockets, processes, the run directory |
//! | [`process`] | starts, watches and ends processes; dom0's end of a control socket |
//! | [`network`] | networks that dom0 manages, switches in user space |
//! | [`device`] | the classes of devices: what a config says of one, what is open of it |
//! | [`config`] | a domain's JSON file, checked |
//! | [`domain`] | one domain: its state machine, its record, its machine, its task |
//! | [`service`] | all domains of one dom0; autostart; another dom0 in its place |
//! | [`api`] | the Varlink interface `org.domus.Dom0` |
//! | [`metrics`] | the answers to Prometheus |

pub mod api;
pub mod config;
pub mod device;
pub mod domain;
pub mod host;
pub mod log;
pub mod metrics;
pub mod network;
pub mod process;
pub mod service;
pub mod value;
