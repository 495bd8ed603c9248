//! A worker sees every command, whenever it comes: it never waits while there is one.

#![allow(clippy::unwrap_used, reason = "only tests")]

use domus_models::mailbox::mailbox;

#[test]
fn no_message_is_slept_through() {
    loom::model(|| {
        let (outbox, inbox) = mailbox().unwrap();
        let senders = [1, 2].map(|message| {
            let outbox = outbox.clone();
            loom::thread::spawn(move || assert!(outbox.send(message)))
        });
        drop(outbox);
        let mut seen = 0;
        // A message that is slept through ends the model in a deadlock.
        while seen < 3 {
            inbox.wake().wait();
            while let Some(message) = inbox.take() {
                seen += message;
            }
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}
