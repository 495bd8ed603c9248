//! The descriptors of one message. Each is taken exactly once; one left over is an error.

use std::os::fd::OwnedFd;

use shared_abi::control::FdIndex;

/// Why a message's descriptors are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FdError {
    /// The index is beyond the array, or its descriptor was taken before.
    #[error("descriptor {index} of {sent} is missing or named twice")]
    NotThere {
        /// The index named in the message.
        index: u8,
        /// How many descriptors came with it.
        sent: usize,
    },
    /// Nobody named this descriptor.
    #[error("{0} of the descriptors sent are not named in the message")]
    LeftOver(usize),
}

/// The descriptors that came with one message, in the order they were sent.
#[derive(Debug, Default)]
pub struct Fds(Vec<Option<OwnedFd>>);

impl Fds {
    /// Takes the descriptor that the message names.
    ///
    /// # Errors
    /// [`FdError::NotThere`] if it is not there, or was taken already.
    pub fn take(&mut self, index: FdIndex) -> Result<OwnedFd, FdError> {
        let sent = self.0.len();
        self.0
            .get_mut(usize::from(index.0))
            .and_then(Option::take)
            .ok_or(FdError::NotThere { index: index.0, sent })
    }

    /// Ends the taking.
    ///
    /// # Errors
    /// [`FdError::LeftOver`] if a descriptor was never taken; it is closed.
    pub fn finish(self) -> Result<(), FdError> {
        match self.0.iter().flatten().count() {
            0 => Ok(()),
            left => Err(FdError::LeftOver(left)),
        }
    }
}

impl From<Vec<OwnedFd>> for Fds {
    fn from(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }
}

/// Collects the descriptors of a message to send, and hands out their indices.
#[derive(Debug, Default)]
pub struct Outgoing(Vec<OwnedFd>);

impl Outgoing {
    /// Adds a descriptor; the result is what the message names it by.
    ///
    /// # Panics
    /// Beyond [`MAX_FDS`](shared_abi::limits::MAX_FDS) descriptors: dom0 counts devices before it builds a message.
    pub fn add(&mut self, fd: impl Into<OwnedFd>) -> FdIndex {
        assert!(self.0.len() < shared_abi::limits::MAX_FDS, "more descriptors than one message carries");
        self.0.push(fd.into());
        // The assertion above keeps the count below 256.
        FdIndex((self.0.len() - 1) as u8)
    }

    /// The descriptors, in the order of their indices.
    pub fn into_vec(self) -> Vec<OwnedFd> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_taken_once_and_none_is_left_over() {
        let mut out = Outgoing::default();
        let (a, b) = nix::unistd::pipe().unwrap();
        let (ia, ib) = (out.add(a), out.add(b));
        let mut fds = Fds::from(out.into_vec());
        assert!(fds.take(ib).is_ok());
        assert_eq!(fds.take(ib).unwrap_err(), FdError::NotThere { index: 1, sent: 2 });
        assert_eq!(fds.take(FdIndex(2)).unwrap_err(), FdError::NotThere { index: 2, sent: 2 });
        assert_eq!(fds.finish(), Err(FdError::LeftOver(1)));
        let _ = ia;
    }
}
