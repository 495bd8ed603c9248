//! The API's errors: for a request that dom0 refuses, and for a domain that could not be started.

use domus_api::ApiError;
use domus_startup::control::chain;

use crate::network::managed::NetworkError;
use crate::service::AskError;
use crate::value::place::ConfigError;

impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        let message = chain(&error);
        match error {
            AskError::NoSuchDomain(_) => Self::NoSuchDomain { message },
            AskError::Refused { .. } | AskError::LeftOver(_) => Self::Refused { message },
        }
    }
}

impl From<NetworkError> for ApiError {
    fn from(error: NetworkError) -> Self {
        let message = chain(&error);
        match error {
            NetworkError::Definition(_) => Self::BadConfig { message },
            _ => Self::Refused { message },
        }
    }
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        Self::BadConfig { message: error.to_string() }
    }
}
