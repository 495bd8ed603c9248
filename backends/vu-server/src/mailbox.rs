//! A channel whose receiver waits for it beside other descriptors.
//!
//! ```text
//!   sender:    message into the channel ─▶ ring
//!   receiver:  wait for the wake ─▶ hush ─▶ message? ─▶ hush ─▶ message? ─▶ none: wait again
//! ```
//!
//! The receiver hushes before it looks: a message that comes after it has found the channel empty rings again. The
//! crate `tests/loom` runs this file in every order of its steps.

use std::io;

use crate::sync::{Arc, Receiver, Sender, Wake, channel};

/// The sender's end. Clones lead to the same receiver.
#[derive(Debug)]
pub struct Outbox<T> {
    messages: Sender<T>,
    wake: Arc<Wake>,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self { messages: self.messages.clone(), wake: self.wake.clone() }
    }
}

impl<T> Outbox<T> {
    /// Sends a message. False if there is no receiver any more.
    pub fn send(&self, message: T) -> bool {
        self.messages.send(message).is_ok() && self.wake.ring()
    }
}

/// The receiver's end.
#[derive(Debug)]
pub struct Inbox<T> {
    messages: Receiver<T>,
    wake: Arc<Wake>,
}

impl<T> Inbox<T> {
    /// The next message, without waiting. Take messages until there is none.
    pub fn take(&self) -> Option<T> {
        self.wake.hush();
        self.messages.try_recv().ok()
    }

    /// What the receiver waits for: there may be messages while it is not 0.
    pub fn wake(&self) -> &Wake {
        &self.wake
    }
}

/// Both ends.
///
/// # Errors
/// There are no descriptors left.
pub fn mailbox<T>() -> io::Result<(Outbox<T>, Inbox<T>)> {
    let wake = Arc::new(Wake::new()?);
    let (sender, receiver) = channel();
    Ok((Outbox { messages: sender, wake: wake.clone() }, Inbox { messages: receiver, wake }))
}
