//! What is asked of a running domain's machine.

use clap::ValueEnum;

/// What `domus trigger` does to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Trigger {
    /// Give a non-maskable interrupt
    Nmi,
    /// Press the power button
    Power,
    /// Press the sleep button
    Sleep,
    /// Reset the machine, as if the guest had
    Reset,
}

impl Trigger {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nmi => "nmi",
            Self::Power => "power",
            Self::Sleep => "sleep",
            Self::Reset => "reset",
        }
    }
}
