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

/// True for the value of a key that need not be written.
pub fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
