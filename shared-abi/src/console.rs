//! What goes over a console socket (`console.sock`): frames of a kind, a length and a payload.
//!
//! ```text
//! offset 0   1 byte   kind
//! offset 1   2 bytes  length of the payload, little endian, at most MAX_CONSOLE_FRAME
//! offset 3   payload
//! ```
//!
//! A client sends [`ClientFrame::Attach`] first. The server answers with [`ServerFrame::Welcome`], then the
//! history and all later output as [`ServerFrame::Output`]. Many clients read; one writes. Input of a client
//! that is not the writer is dropped by the server, which has told it so.
