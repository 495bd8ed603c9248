//! What is measured: where the bytes are, and how they are asked for.

/// Where a disk's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A file on a disk, past the page cache.
    Direct,
    /// The same, and all of it is in the page cache.
    PageCache,
    /// A file in /dev/shm: a page cache without a disk. Its reads never wait, yet tmpfs does not offer `RWF_NOWAIT`.
    Tmpfs,
    /// Nowhere: every request is done at once.
    Null,
}

/// How they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads of blocks anywhere.
    RandomRead,
    /// Writes of blocks anywhere.
    RandomWrite,
    /// Reads of one block after the other, from the start again at the end.
    SequentialRead,
}

impl Access {
    /// fio's word for it.
    pub fn fio(self) -> &'static str {
        match self {
            Self::RandomRead => "randread",
            Self::RandomWrite => "randwrite",
            Self::SequentialRead => "read",
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What `--case` names.
    pub name: &'static str,
    /// Where.
    pub storage: Storage,
    /// How.
    pub access: Access,
    /// Bytes of a request.
    pub block: u32,
    /// Requests that are under way at once.
    pub depth: u32,
}

/// Every row.
pub const CASES: &[Case] = &[
    case("direct-randread-qd32", Storage::Direct, Access::RandomRead, 4, 32),
    case("direct-randread-qd1", Storage::Direct, Access::RandomRead, 4, 1),
    case("direct-randwrite-qd32", Storage::Direct, Access::RandomWrite, 4, 32),
    case("direct-seqread-128k-qd8", Storage::Direct, Access::SequentialRead, 128, 8),
    case("cache-randread-qd32", Storage::PageCache, Access::RandomRead, 4, 32),
    case("tmpfs-randread-qd32", Storage::Tmpfs, Access::RandomRead, 4, 32),
    case("null-qd32", Storage::Null, Access::RandomRead, 4, 32),
    case("null-qd1", Storage::Null, Access::RandomRead, 4, 1),
];

const fn case(name: &'static str, storage: Storage, access: Access, kib: u32, depth: u32) -> Case {
    Case { name, storage, access, block: kib << 10, depth }
}

impl Case {
    /// Whether its rate is told in bytes.
    pub fn in_bytes(&self) -> bool {
        self.block > 4096
    }

    /// Requests a second, as the row tells them: IOPS, or MB/s.
    pub fn rate(&self, iops: f64) -> (f64, &'static str) {
        if self.in_bytes() { (iops * f64::from(self.block) / 1e6, "MB/s") } else { (iops, "IOPS") }
    }
}

/// What is measured beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Ours.
    Domus,
    /// Ours, from inside a guest.
    Guest,
    /// QEMU's export with `aio=io_uring`.
    StorageDaemon,
    /// QEMU's export with `aio=native`.
    StorageDaemonNative,
    /// No backend at all: the limit.
    Fio,
}

impl Program {
    /// In the order of the table.
    pub const ALL: [Self; 5] =
        [Self::Domus, Self::Guest, Self::StorageDaemon, Self::StorageDaemonNative, Self::Fio];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Domus => "domus-block",
            Self::Guest => "... in a guest",
            Self::StorageDaemon => "qemu-storage-daemon",
            Self::StorageDaemonNative => "... with aio=native",
            Self::Fio => "fio",
        }
    }

    /// Whether it can do a case at all.
    pub fn does(self, case: &Case) -> bool {
        match self {
            Self::Domus | Self::StorageDaemon => true,
            // Linux AIO works asynchronously past the page cache only.
            Self::StorageDaemonNative => case.storage == Storage::Direct,
            // What its kernel has: 4 KiB, anywhere.
            Self::Guest => case.storage != Storage::Null && case.access != Access::SequentialRead,
            Self::Fio => case.storage != Storage::Null,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn big_blocks_are_told_in_bytes_and_small_ones_in_requests() {
        let [small, big] = [&CASES[0], &CASES[3]];
        assert_eq!(small.rate(1000.0), (1000.0, "IOPS"));
        assert_eq!(big.rate(1000.0), (131.072, "MB/s"));
    }

    #[test]
    fn every_case_has_a_name_of_its_own_and_two_programs_to_compare() {
        for (index, case) in CASES.iter().enumerate() {
            assert!(CASES[..index].iter().all(|other| other.name != case.name));
            assert!(Program::ALL.iter().filter(|program| program.does(case)).count() >= 2);
        }
    }
}
