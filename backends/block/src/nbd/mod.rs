//! Disks at an NBD server: the client, by the protocol text of the NetworkBlockDevice project.
//!
//! ```text
//!   connected socket ─▶ handshake ─▶ send, receive ─lost▶ wait for the next socket ─▶ handshake ─▶ send again …
//! ```
//!
//! Spoken: the fixed newstyle handshake with `NBD_OPT_GO`, simple replies, and those commands that the server offers.
//! Not spoken: TLS, structured replies, several connections. The server is not trusted: the client checks lengths,
//! cookies and sizes, and disconnects from a server that breaks a rule. Promised: a request is answered once, after a
//! server has reported it done. Without a connection a request waits, and after a reconnect the client sends all
//! unanswered requests again in their order; a newer write to sectors of one that the server may still be about waits
//! for ten seconds after the loss.
//!
//! | module | does |
//! |---|---|
//! | [`wire`] | bytes and numbers of the protocol: pure |
//! | [`stream`] | a socket in the ring |
//! | [`handshake`] | from a connected socket to an export |
//! | [`client`] | requests in flight, and what becomes of them |
//! | [`fence`] | writes that a server may still be about |

pub mod client;
pub mod fence;
pub mod handshake;
pub mod stream;
pub mod wire;

#[cfg(test)]
mod tests;
