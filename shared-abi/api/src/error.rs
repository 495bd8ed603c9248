//! Why dom0 refuses a call.

use zlink::introspect;

/// Why a call failed. Each has one line for the operator: what failed, the value, the cure.
#[derive(Debug, Clone, PartialEq, Eq, zlink::ReplyError, introspect::ReplyError)]
#[zlink(interface = "org.domus.Dom0")]
pub enum ApiError {
    /// The caller may not do this.
    NotAllowed {
        /// One line.
        message: String,
    },
    /// The config is refused.
    BadConfig {
        /// One line.
        message: String,
    },
    /// The domain could not be started; nothing of it is left.
    StartFailed {
        /// One line.
        message: String,
    },
    /// There is no such domain.
    NoSuchDomain {
        /// One line.
        message: String,
    },
    /// The domain's state does not allow it, or its runner has refused.
    Refused {
        /// One line.
        message: String,
    },
}

impl ApiError {
    /// The line for the operator.
    pub fn message(&self) -> &str {
        match self {
            Self::NotAllowed { message }
            | Self::BadConfig { message }
            | Self::StartFailed { message }
            | Self::NoSuchDomain { message }
            | Self::Refused { message } => message,
        }
    }
}
