//! The control thread's commands to the workers of a disk, besides starting and stopping their queues.

use std::os::fd::OwnedFd;
use std::sync::mpsc::SyncSender;

/// A command to one worker.
#[derive(Debug)]
pub enum BlockCommand {
    /// Do again what is held.
    Again,
    /// The limits have changed: ask again for what waits.
    Limits,
    /// The disk has become shorter: fail what waits or is held beyond its end, and say when nothing that was begun
    /// before reaches beyond it.
    Settle(SyncSender<()>),
    /// For disks that are asynchronous code: give the storage another size, or look what size it has; the answer is
    /// the size.
    Resize(Option<u64>, SyncSender<Result<u64, String>>),
    /// For disks at a server: a new connection to it.
    Offer(Offer),
}

/// A new connection to the server of a disk, and where to say whether it could be used.
#[derive(Debug)]
pub struct Offer {
    /// The connected socket.
    pub socket: OwnedFd,
    /// Gets one answer: the reason, if it is of no use.
    pub answer: SyncSender<Result<(), String>>,
}
