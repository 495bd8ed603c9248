//! The parts of the network that domains share: networks that dom0 manages, and switches in user space.

pub mod managed;
pub mod switches;
