//! What the control thread tells the workers of a disk, besides starting and stopping their queues.

use std::sync::mpsc::SyncSender;

use crate::nbd::client::Offer;

/// An order to one worker.
#[derive(Debug)]
pub enum BlockOrder {
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
