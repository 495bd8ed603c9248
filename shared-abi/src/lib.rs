//! The contracts between the processes of Domus: versioned messages, ids and limits.
//!
//! Types only. Nothing here opens, reads, maps or waits; the code that moves these messages is the
//! crate `domus-startup`, and every process checks what it receives by the types of this crate.
//!
//! | module | between |
//! |---|---|
//! | [`control`] | `dom0` and each of its children, over a `SOCK_SEQPACKET` socket |
//! | [`console`] | `domus-console` and whoever is attached to a console, over a stream socket |
//! | [`cpu`] | dom0 and `domu-runner`: the features that a guest's CPU may have |
//! | [`steering`] | dom0, the kernel and `domus-net`, in shared memory |
//! | [`ids`], [`limits`], [`nbd`] | all of them |
//! | [`rate`], [`size`], [`time`] | people and all of them: how a config, a command line and a message write them |

pub mod console;
pub mod control;
pub mod cpu;
pub mod ids;
pub mod limits;
pub mod nbd;
pub mod rate;
pub mod size;
pub mod steering;
pub mod time;

pub use ids::{DeviceId, DomId, DomainName, MacAddress, NetworkName, Role, Slot, SwitchName};
