//! What is measured: which way frames go, and how long they are.

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From a guest to a tap.
    Transmit,
    /// From a tap, whose queue is full when the clock starts, to a guest.
    Receive,
    /// From a tap to a guest and back, one frame after the other.
    Echo,
    /// From guest to guest over tap, bridge and tap.
    Bridge,
    /// From guest to guest over a switch in user space.
    Switch,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What `--case` names.
    pub name: &'static str,
    /// Which way.
    pub way: Way,
    /// Bytes of a frame.
    pub length: usize,
}

/// What Linux makes of a stream of TCP: 45 segments of 1448 bytes, and their headers once.
const LONGEST: usize = 45 * 1448 + 54;

/// Every row.
pub const CASES: &[Case] = &[
    case("tx-60", Way::Transmit, 60),
    case("tx-1514", Way::Transmit, 1514),
    case("tx-64k-tso", Way::Transmit, LONGEST),
    case("rx-60", Way::Receive, 60),
    case("rx-64k-mergeable", Way::Receive, LONGEST),
    case("echo-60", Way::Echo, 60),
    case("bridge-60", Way::Bridge, 60),
    case("bridge-64k", Way::Bridge, LONGEST),
    case("switch-60", Way::Switch, 60),
    case("switch-64k", Way::Switch, LONGEST),
];

const fn case(name: &'static str, way: Way, length: usize) -> Case {
    Case { name, way, length }
}

impl Case {
    /// Whether the frames are segments to be cut.
    pub fn is_large(&self) -> bool {
        self.length > 1514
    }

    /// Frames a second, as the row tells them.
    pub fn rate(&self, frames: f64) -> (f64, &'static str) {
        match (self.way, self.is_large()) {
            (Way::Echo, _) => (frames / 1e3, "k/s"),
            (_, true) => (frames * self.length as f64 * 8.0 / 1e9, "Gbit/s"),
            (_, false) => (frames / 1e6, "Mpps"),
        }
    }
}

/// What is measured beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `domus-net`, or `domus-switch`.
    Domus,
    /// DPDK's testpmd: `net_vhost` and `net_tap`, or two `net_vhost`.
    Testpmd,
    /// A loop of `read` or `write` on the taps, without a guest: the limit.
    Loop,
}

impl Program {
    /// In the order of the table.
    pub const ALL: [Self; 3] = [Self::Domus, Self::Testpmd, Self::Loop];

    /// Its name in the table.
    pub fn name(self, case: &Case) -> &'static str {
        match self {
            Self::Domus if case.way == Way::Switch => "domus-switch",
            Self::Domus => "domus-net",
            Self::Testpmd => "testpmd",
            Self::Loop => "loop",
        }
    }

    /// Whether it can do a case at all.
    pub fn does(self, case: &Case) -> bool {
        match self {
            Self::Domus => true,
            // It polls its tap, so that the tap's queue cannot be filled before the clock starts; and it has no
            // segments for taps.
            Self::Testpmd => match case.way {
                Way::Transmit => !case.is_large(),
                Way::Echo | Way::Switch => true,
                Way::Receive | Way::Bridge => false,
            },
            Self::Loop => case.way != Way::Switch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own_and_two_programs_to_compare() {
        for (index, case) in CASES.iter().enumerate() {
            assert!(CASES[..index].iter().all(|other| other.name != case.name));
            assert!(Program::ALL.iter().filter(|program| program.does(case)).count() >= 2, "{}", case.name);
        }
    }

    #[test]
    fn long_frames_are_told_in_bits_and_short_ones_in_packets() {
        assert_eq!(CASES[0].rate(2e6), (2.0, "Mpps"));
        assert_eq!(CASES[2].rate(1e5).1, "Gbit/s");
    }
}
