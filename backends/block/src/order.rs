//! What the control thread tells the workers of a disk, besides starting and stopping their queues.

use std::sync::mpsc::SyncSender;

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
}
