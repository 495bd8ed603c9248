//! A rate as a config and a command line write it: `RATE[:BURST[:SECONDS]]`, such as `500`, `"50MiB"`,
//! `"100MiB:400MiB:10"`; for bits, decimal units are usual: `"100M"`.

use std::borrow::Cow;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use shared_abi::control::{IoLimit, IoLimits, NicLimit, NicLimits, Rate};

/// A rate, or none: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateText(pub Option<Rate>);

const EXPECTED: &str = "RATE[:BURST[:SECONDS]] such as 500, \"50MiB\", \"100M\" or \"100MiB:400MiB:10\", with BURST at least RATE, or \"none\"";

/// Not a rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no rate: {EXPECTED} would do")]
pub struct RateError(String);

impl FromStr for RateText {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        if text == "none" {
            return Ok(Self(None));
        }
        match text.parse() {
            Ok(rate) => Ok(Self(Some(rate))),
            Err(_) => Err(RateError(text.chars().take(64).collect())),
        }
    }
}

impl<'de> Deserialize<'de> for RateText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = RateText;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(EXPECTED)
            }
            fn visit_u64<E: Error>(self, rate: u64) -> Result<RateText, E> {
                self.visit_str(&rate.to_string())
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<RateText, E> {
                text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl JsonSchema for RateText {
    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let number = "[0-9]+(KiB|MiB|GiB|K|M|G)?";
        json_schema!({
            "description": EXPECTED,
            "oneOf": [
                { "type": "string", "pattern": format!("^(none|{number}(:{number}(:[0-9]+)?)?)$") },
                { "type": "integer", "minimum": 1 }
            ]
        })
    }
}

/// What a disk, or all disks of a domain, may do a second. What is left out is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsFile {
    /// Requests.
    #[serde(default)]
    pub iops: Option<RateText>,
    /// Requests to read.
    #[serde(default)]
    pub read_iops: Option<RateText>,
    /// Requests to write, discard or write zeroes.
    #[serde(default)]
    pub write_iops: Option<RateText>,
    /// Bytes.
    #[serde(default)]
    pub bytes: Option<RateText>,
    /// Bytes read.
    #[serde(default)]
    pub read_bytes: Option<RateText>,
    /// Bytes written, discarded or zeroed.
    #[serde(default)]
    pub write_bytes: Option<RateText>,
}

impl LimitsFile {
    /// The limits in `old`, with what is given here in their place.
    pub fn over(self, old: IoLimits) -> IoLimits {
        let rate = |new: Option<RateText>, old| new.map_or(old, |RateText(rate)| rate);
        let limit =
            |iops, bytes, old: IoLimit| IoLimit { iops: rate(iops, old.iops), bytes: rate(bytes, old.bytes) };
        IoLimits {
            total: limit(self.iops, self.bytes, old.total),
            read: limit(self.read_iops, self.read_bytes, old.read),
            write: limit(self.write_iops, self.write_bytes, old.write),
        }
    }
}

/// What a NIC may carry a second. What is left out is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NicLimitsFile {
    /// Bits of frames to the guest.
    #[serde(default)]
    pub receive_bits: Option<RateText>,
    /// Frames to the guest.
    #[serde(default)]
    pub receive_packets: Option<RateText>,
    /// Bits of frames from the guest.
    #[serde(default)]
    pub transmit_bits: Option<RateText>,
    /// Frames from the guest.
    #[serde(default)]
    pub transmit_packets: Option<RateText>,
}

impl NicLimitsFile {
    /// The limits in `old`, with what is given here in their place.
    pub fn over(self, old: NicLimits) -> NicLimits {
        let rate = |new: Option<RateText>, old| new.map_or(old, |RateText(rate)| rate);
        let limit = |bits, packets, old: NicLimit| NicLimit {
            bits: rate(bits, old.bits),
            packets: rate(packets, old.packets),
        };
        NicLimits {
            receive: limit(self.receive_bits, self.receive_packets, old.receive),
            transmit: limit(self.transmit_bits, self.transmit_packets, old.transmit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_a_unit_a_burst_and_a_length_if_it_wants() {
        let rate = |per_second, burst, burst_seconds| Some(Rate { per_second, burst, burst_seconds });
        for (text, expected) in [
            ("500", rate(500, 500, 1)),
            ("50MiB", rate(50 << 20, 50 << 20, 1)),
            ("1KiB:2GiB", rate(1 << 10, 2 << 30, 1)),
            ("100:400:10", rate(100, 400, 10)),
            ("100M:1G", rate(100_000_000, 1_000_000_000, 1)),
            ("none", None),
        ] {
            assert_eq!(text.parse(), Ok(RateText(expected)), "{text}");
        }
        assert_eq!(serde_json::from_str::<RateText>("7").unwrap().0, rate(7, 7, 1));
        for text in
            ["", "0", "5MB", "10:5", "1:1:0", "1:1:3601", "1:2:3:4", "-1", "20000000000GiB", "1.5", "1:"]
        {
            assert!(text.parse::<RateText>().unwrap_err().to_string().contains("50MiB"), "{text}");
        }
    }

    #[test]
    fn a_change_leaves_alone_what_it_does_not_name() {
        let file = |text| serde_json::from_str::<LimitsFile>(text).unwrap();
        let first = file(r#"{"iops": 500, "read_bytes": "1MiB"}"#).over(IoLimits::default());
        let second = file(r#"{"iops": "none", "write_iops": 9}"#).over(first);
        assert_eq!(second.total.iops, None);
        assert_eq!((second.read.bytes, second.write.iops.unwrap().per_second), (first.read.bytes, 9));
    }
}
