//! Disks at an NBD server: the client, by the protocol text of the NetworkBlockDevice project.
//!
//! ```text
//!   connected socket ─▶ handshake ─▶ send, receive ─lost▶ wait for the next socket ─▶ handshake ─▶ send again …
//! ```
//!
//! Spoken: the fixed newstyle handshake with `NBD_OPT_GO`, simple replies, and of the commands those that the server
//! offers. Not spoken: TLS, structured replies, several connections. The server is not trusted: lengths, cookies and sizes
//! are checked, and one that breaks a rule is hung up on. Promised: a request is answered once, when a server has said that
//! it is done; without a server it waits, and after a reconnect everything unanswered is sent again in its order.
//!
//! | module | does |
//! |---|---|
//! | [`wire`] | bytes and numbers of the protocol: pure |
//! | [`stream`] | a socket in the ring |
//! | [`handshake`] | from a connected socket to an export |
//! | [`client`] | requests in flight, and what becomes of them |

pub mod client;
pub mod handshake;
pub mod stream;
pub mod wire;

#[cfg(test)]
mod tests;
