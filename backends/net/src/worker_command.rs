//! The commands to the workers of a NIC, besides starting and stopping their queues.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use crate::settings::Wanted;

/// A command to one worker.
#[derive(Debug)]
pub enum NicCommand {
    /// To a receiver: the driver wants these frames.
    Wanted(Arc<Wanted>),
    /// To a receiver: the queue pair is in use, or not any more.
    Active(bool),
    /// The cable was plugged in or pulled, or the limits have changed: look again.
    Look,
    /// A new connection to the other end of the cable.
    Connected(Arc<UnixStream>),
    /// Say when all that was ordered before holds.
    Settle(SyncSender<()>),
}
