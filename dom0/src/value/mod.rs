//! Values without I/O: what the layers above are made of. Nothing here imports another layer.

pub mod address;
pub mod backoff;
pub mod cpus;
pub mod names;
pub mod place;
pub mod rate;
pub mod size;
pub mod text;
pub mod time;
pub mod trouble;
