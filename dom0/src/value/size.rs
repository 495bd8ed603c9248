//! An amount of memory as a config writes it: `"512MiB"`, `"2GiB"`, or a whole number of MiB as xl has it.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use shared_abi::size;

/// An amount of memory in MiB. Its range is checked with the rest of the config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySize {
    /// The amount in MiB.
    pub mib: u64,
}

const EXPECTED: &str = "a size such as \"512MiB\" or \"2GiB\", or a whole number of MiB";

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mib >= 1024 && self.mib.is_multiple_of(1024) {
            write!(f, "{}GiB", self.mib / 1024)
        } else {
            write!(f, "{}MiB", self.mib)
        }
    }
}

impl<'de> Deserialize<'de> for MemorySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = MemorySize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }
            fn visit_u64<E: Error>(self, mib: u64) -> Result<MemorySize, E> {
                Ok(MemorySize { mib })
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<MemorySize, E> {
                let mib = size::memory(text);
                let mib = mib.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))?;
                Ok(MemorySize { mib })
            }
        }
        deserializer.deserialize_any(Size)
    }
}

impl JsonSchema for MemorySize {
    fn schema_name() -> Cow<'static, str> {
        "MemorySize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": EXPECTED,
            "oneOf": [
                { "type": "string", "pattern": "^[0-9]+ *(MiB|GiB|TiB)$" },
                { "type": "integer", "minimum": 16 }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_text_with_a_binary_unit_or_a_number_of_mib() {
        for (text, mib) in [("\"512MiB\"", 512), ("\"2GiB\"", 2048), ("\"1 TiB\"", 1 << 20), ("768", 768)] {
            assert_eq!(serde_json::from_str::<MemorySize>(text).unwrap(), MemorySize { mib }, "{text}");
        }
        for text in [
            "\"\"",
            "\"GiB\"",
            "\"1GB\"",
            "\"1\"",
            "\"-1GiB\"",
            "\"1.5GiB\"",
            "-5",
            "1.5",
            "\"99999999999999999999GiB\"",
            "\"99999999999999999GiB\"",
        ] {
            let error = serde_json::from_str::<MemorySize>(text).unwrap_err().to_string();
            assert!(error.contains("512MiB"), "{text}: {error}");
        }
    }
}
