//! Limits on the command line: one option for each limit of the API.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use domus_api::Limit;

/// A limit's name in the API, its option, and what it limits.
type Row = (&'static str, &'static str, &'static str);

const DISK: [Row; 6] = [
    ("iops", "iops", "Requests a second"),
    ("read_iops", "read-iops", "Requests to read a second"),
    ("write_iops", "write-iops", "Requests to write a second"),
    ("bytes", "bytes", "Bytes a second"),
    ("read_bytes", "read-bytes", "Bytes read a second"),
    ("write_bytes", "write-bytes", "Bytes written a second"),
];

const NIC: [Row; 4] = [
    ("receive_bits", "receive-bits", "Bits a second to the guest"),
    ("receive_packets", "receive-packets", "Frames a second to the guest"),
    ("transmit_bits", "transmit-bits", "Bits a second from the guest"),
    ("transmit_packets", "transmit-packets", "Frames a second from the guest"),
];

/// The limits of a disk that the command line names. A rate is `RATE[:BURST[:SECONDS]]` such as 500, 50MiB or
/// 100MiB:400MiB:10; `none` lifts a limit.
#[derive(Debug)]
pub struct DiskLimits(pub Vec<Limit>);

/// The limits of a NIC that the command line names, with rates as those of a disk.
#[derive(Debug)]
pub struct NicLimits(pub Vec<Limit>);

fn options(command: Command, rows: &[Row]) -> Command {
    let option = |&(name, option, help): &Row| Arg::new(name).long(option).value_name("RATE").help(help);
    command.args(rows.iter().map(option))
}

fn given(matches: &ArgMatches, rows: &[Row]) -> Vec<Limit> {
    let rate = |name| matches.get_one::<String>(name).cloned();
    rows.iter().filter_map(|(name, ..)| Some(Limit { name: (*name).into(), rate: rate(name)? })).collect()
}

macro_rules! options_of {
    ($limits:ident, $rows:ident) => {
        impl Args for $limits {
            fn augment_args(command: Command) -> Command {
                options(command, &$rows)
            }

            fn augment_args_for_update(command: Command) -> Command {
                options(command, &$rows)
            }
        }

        impl FromArgMatches for $limits {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(given(matches, &$rows)))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0 = given(matches, &$rows);
                Ok(())
            }
        }
    };
}

options_of!(DiskLimits, DISK);
options_of!(NicLimits, NIC);

#[cfg(test)]
mod tests {
    use domus_api::{DISK_LIMITS, NIC_LIMITS};

    use super::*;

    #[test]
    fn each_limit_of_the_api_has_an_option_of_its_name() {
        assert_eq!(DISK.map(|(name, ..)| name), DISK_LIMITS);
        assert_eq!(NIC.map(|(name, ..)| name), NIC_LIMITS);
        let named = |(name, option, _): &Row| name.replace('_', "-") == *option;
        assert!(DISK.iter().chain(&NIC).all(named));
    }
}
