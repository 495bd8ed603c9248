//! The commands: each module has the command line of its commands (`…Args`) and what they do.
//!
//! | module | commands |
//! |---|---|
//! | [`create`], [`timing`] | `create` |
//! | [`check`], [`plan`] | `check` |
//! | [`run`], [`cleanup_process`] | `run` |
//! | [`import`] | `import` |
//! | [`list`] | `list`, `vm-list`, `domid`, `domname` |
//! | [`top`], [`events`], [`logs`], [`why`] | the command of that name |
//! | [`host`], [`guests`], [`service`] | `info`, `guests-stop`, `dom0` |
//! | [`console`] | `console` |
//! | [`lifecycle`] | `pause`, `unpause`, `shutdown`, `reboot`, `destroy` |
//! | [`machine`] | `trigger`, `sysrq`, `dump-core` |
//! | [`update`] | `rename`, `config-update` |
//! | [`cpus`] | `vcpu-list`, `vcpu-pin`, `sched-set`, `sched-list`, `uptime` |
//! | [`block`], [`backend`], [`network`] | `block-…`, `backend`, `network-…` |
//! | [`disk`] | `disk` |
//! | [`shell`] | `completions`, `manual` |

pub mod backend;
pub mod block;
pub mod check;
pub mod cleanup_process;
pub mod console;
pub mod cpus;
pub mod create;
pub mod disk;
pub mod events;
pub mod guests;
pub mod host;
pub mod import;
pub mod lifecycle;
pub mod list;
pub mod logs;
pub mod machine;
pub mod network;
pub mod plan;
pub mod run;
pub mod service;
pub mod shell;
pub mod timing;
pub mod top;
pub mod update;
pub mod why;
