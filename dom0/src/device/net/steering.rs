//! The program on a tap with several queues that chooses the queue of a frame for the guest, and the table it reads.
//!
//! Without one the kernel lets a flow come back on the queue it was last sent on, which is all that a driver without
//! `VIRTIO_NET_F_RSS` expects. With one the driver's own rules hold: the backend writes them into the table
//! ([`shared_abi::steering`]), which dom0 makes and never reads.
//!
//! ```text
//!   Ethernet, one VLAN tag at most ─┬─ IPv4: addresses ─┬─ TCP, UDP, no fragment: ports ─▶ hash ─▶ table[hash & mask]
//!                                   ├─ IPv6: addresses ─┘
//!                                   └─ else ─▶ the pair for frames without a hash
//! ```
//!
//! The program has no loop and looks at no more than the first 82 bytes. Loading it needs `CAP_BPF` or root; a dom0
//! that may not gets none, and its NICs offer no RSS.

#![expect(unsafe_code, reason = "bpf(2) and TUNSETSTEERINGEBPF have no safe interface")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use shared_abi::steering::{
    ADDENDS, ENTRIES, HASH_IPV4, HASH_IPV6, HASH_TCPV4, HASH_TCPV6, HASH_UDPV4, HASH_UDPV6, MASK, TABLE,
    TYPES, UNCLASSIFIED, WORDS,
};

nix::ioctl_read!(
    /// Lets a program choose the queue (`linux/if_tun.h`). The argument is a pointer to the program's descriptor.
    tun_set_steering,
    b'T',
    224,
    libc::c_int
);

// bpf(2): `linux/bpf.h`.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
const BPF_FUNC_SKB_LOAD_BYTES: i32 = 26;

/// The start of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
}

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct ProgLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: bpf reads `size_of::<T>()` bytes of attributes, a plain struct that lives until the call returns, and
    // what these point to: the program and its license, which the caller keeps.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    // A descriptor is a small number.
    let fd = Errno::result(fd)? as RawFd;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a table, and puts a program that reads it on a tap: on all its queues, `tap` being one of them. The program
/// stays as long as the tap.
///
/// # Errors
/// `PermissionDenied`, or what else the kernel said.
pub fn steer(tap: &impl AsRawFd) -> io::Result<OwnedFd> {
    let value_size = (WORDS * 4) as u32;
    let table = bpf(
        BPF_MAP_CREATE,
        &MapCreate { kind: BPF_MAP_TYPE_ARRAY, key_size: 4, value_size, entries: 1, flags: BPF_F_MMAPABLE },
    )?;
    let code = program(table.as_raw_fd());
    let license = c"Apache-2.0";
    let program = bpf(
        BPF_PROG_LOAD,
        &ProgLoad {
            kind: BPF_PROG_TYPE_SOCKET_FILTER,
            instructions: code.len() as u32,
            code: code.as_ptr().addr() as u64,
            license: license.as_ptr().addr() as u64,
        },
    )?;
    let mut fd = program.as_raw_fd();
    // SAFETY: TUNSETSTEERINGEBPF reads one int, which lives until the call returns.
    unsafe { tun_set_steering(tap.as_raw_fd(), &raw mut fd) }?;
    Ok(table)
}

/// One instruction: code, registers (source in the upper half), offset, immediate (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Registers: 0 result, 1–5 arguments and scratch, 6 the frame, 7 the hash, 8 where IP starts, 9 the table, 10 the
/// stack's end.
type Register = u8;

/// The program's text. Jumps are to labels, which are set later.
#[derive(Default)]
struct Text {
    code: Vec<Insn>,
    jumps: Vec<(usize, Label)>,
    labels: [usize; Label::COUNT],
}

#[derive(Clone, Copy)]
enum Label {
    Tagged,
    Ip,
    V6,
    V4Fragment,
    V4Whole,
    V4Ports,
    V4Addresses,
    V6Ports,
    V6Addresses,
    Choose,
    Unclassified,
}

impl Label {
    const COUNT: usize = Self::Unclassified as usize + 1;
}

/// Where in the stack the packet's head, its ports, and the two bytes of the frame's type are.
const HEAD: i16 = -64;
const PORTS: i16 = -72;
const ETHER_TYPE: i16 = -80;

impl Text {
    fn push(&mut self, code: u8, to: Register, from: Register, offset: i16, immediate: i32) {
        self.code.push(Insn { code, registers: from << 4 | to, offset, immediate });
    }

    fn set(&mut self, to: Register, value: i32) {
        self.push(0xb7, to, 0, 0, value);
    }

    fn copy(&mut self, to: Register, from: Register) {
        self.push(0xbf, to, from, 0, 0);
    }

    fn add(&mut self, to: Register, value: i32) {
        self.push(0x07, to, 0, 0, value);
    }

    fn add_register(&mut self, to: Register, from: Register) {
        self.push(0x0f, to, from, 0, 0);
    }

    fn and(&mut self, to: Register, value: i32) {
        self.push(0x57, to, 0, 0, value);
    }

    fn times_four(&mut self, to: Register) {
        self.push(0x67, to, 0, 0, 2);
    }

    fn load_byte(&mut self, to: Register, from: Register, offset: i16) {
        self.push(0x71, to, from, offset, 0);
    }

    fn load_half(&mut self, to: Register, from: Register, offset: i16) {
        self.push(0x69, to, from, offset, 0);
    }

    fn load_word(&mut self, to: Register, from: Register, offset: i16) {
        self.push(0x61, to, from, offset, 0);
    }

    /// Word `word` of the table.
    fn table_word(&mut self, to: Register, word: usize) {
        self.load_word(to, 9, (word * 4) as i16);
    }

    fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(0x05, 0, 0, 0, 0);
    }

    fn jump_if_equal(&mut self, register: Register, value: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(0x15, register, 0, 0, value);
    }

    fn jump_unless_equal(&mut self, register: Register, value: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(0x55, register, 0, 0, value);
    }

    fn jump_if_any(&mut self, register: Register, bits: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(0x45, register, 0, 0, bits);
    }

    fn label(&mut self, label: Label) {
        self.labels[label as usize] = self.code.len();
    }

    /// Loads `length` bytes of the frame from the offset in register 2 to the stack; frames that are shorter have no
    /// hash.
    fn load_frame(&mut self, stack: i16, length: i32) {
        self.copy(1, 6);
        self.copy(3, 10);
        self.add(3, stack.into());
        self.set(4, length);
        self.push(0x85, 0, 0, 0, BPF_FUNC_SKB_LOAD_BYTES);
        self.jump_unless_equal(0, 0, Label::Unclassified);
    }

    /// Adds what the bytes at `stack` add to the hash, the first of them at place `place`.
    fn hash(&mut self, stack: i16, place: usize, count: usize) {
        for n in 0..count {
            self.load_byte(1, 10, stack + n as i16);
            self.times_four(1);
            self.copy(2, 9);
            self.add(2, ((ADDENDS + (place + n) * 256) * 4) as i32);
            self.add_register(2, 1);
            self.load_word(1, 2, 0);
            self.push(0xaf, 7, 1, 0, 0);
        }
    }

    /// Goes to `ports` if the protocol in register 3 is one whose ports are hashed, else to `addresses` if these are,
    /// by the types in register 4.
    fn choose(&mut self, tcp: u32, udp: u32, ports: Label, ip: u32, addresses: Label) {
        for (protocol, bit) in [(6, tcp), (17, udp)] {
            // Past the next instruction.
            self.push(0x55, 3, 0, 1, protocol);
            self.jump_if_any(4, bit as i32, ports);
        }
        self.jump_if_any(4, ip as i32, addresses);
        self.jump(Label::Unclassified);
    }

    fn finish(mut self) -> Vec<Insn> {
        for (at, label) in self.jumps {
            // Relative to the instruction after the jump; the program has a few hundred.
            self.code[at].offset = (self.labels[label as usize] - at - 1) as i16;
        }
        self.code
    }
}

/// The program, which reads the table behind this descriptor.
fn program(table: RawFd) -> Vec<Insn> {
    let mut text = Text::default();
    text.copy(6, 1);
    // A load of 64 bits takes two instructions; source 2: the address of the array's first value.
    text.push(0x18, 9, 2, 0, table);
    text.push(0, 0, 0, 0, 0);
    text.set(7, 0);
    text.set(8, 14);
    text.set(2, 12);
    text.load_frame(ETHER_TYPE, 2);
    text.load_half(1, 10, ETHER_TYPE);
    text.jump_if_equal(1, network(0x8100), Label::Tagged);
    text.jump(Label::Ip);
    text.label(Label::Tagged);
    text.set(8, 18);
    text.set(2, 16);
    text.load_frame(ETHER_TYPE, 2);
    text.label(Label::Ip);
    text.load_half(1, 10, ETHER_TYPE);
    text.jump_if_equal(1, network(0x86dd), Label::V6);
    text.jump_unless_equal(1, network(0x0800), Label::Unclassified);

    text.copy(2, 8);
    text.load_frame(HEAD, 20);
    text.load_byte(3, 10, HEAD + 9);
    text.table_word(4, TYPES);
    text.load_half(1, 10, HEAD + 6);
    // A fragment, by its offset or by more of them to come, has no ports: no protocol is 255.
    text.jump_if_any(1, network(0x3fff), Label::V4Fragment);
    text.jump(Label::V4Whole);
    text.label(Label::V4Fragment);
    text.set(3, 255);
    text.label(Label::V4Whole);
    text.choose(HASH_TCPV4, HASH_UDPV4, Label::V4Ports, HASH_IPV4, Label::V4Addresses);
    text.label(Label::V4Ports);
    text.load_byte(2, 10, HEAD);
    text.and(2, 0xf);
    text.times_four(2);
    text.add_register(2, 8);
    text.load_frame(PORTS, 4);
    text.hash(PORTS, 8, 4);
    text.label(Label::V4Addresses);
    text.hash(HEAD + 12, 0, 8);
    text.jump(Label::Choose);

    text.label(Label::V6);
    text.copy(2, 8);
    text.load_frame(HEAD, 40);
    text.load_byte(3, 10, HEAD + 6);
    text.table_word(4, TYPES);
    text.choose(HASH_TCPV6, HASH_UDPV6, Label::V6Ports, HASH_IPV6, Label::V6Addresses);
    text.label(Label::V6Ports);
    text.copy(2, 8);
    text.add(2, 40);
    text.load_frame(PORTS, 4);
    text.hash(PORTS, 32, 4);
    text.label(Label::V6Addresses);
    text.hash(HEAD + 8, 0, 32);

    text.label(Label::Choose);
    text.table_word(1, MASK);
    text.push(0x5f, 7, 1, 0, 0);
    // The table's writer is not trusted, and the kernel would not let it be.
    text.and(7, ENTRIES as i32 - 1);
    text.times_four(7);
    text.copy(2, 9);
    text.add(2, (TABLE * 4) as i32);
    text.add_register(2, 7);
    text.load_word(0, 2, 0);
    text.push(0x95, 0, 0, 0, 0);
    text.label(Label::Unclassified);
    text.table_word(0, UNCLASSIFIED);
    text.push(0x95, 0, 0, 0, 0);
    text.finish()
}

/// A number of 16 bits as it is in a frame, read by this machine.
fn network(value: u16) -> i32 {
    value.to_be().into()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::os::fd::AsFd;
    use std::os::unix::fs::OpenOptionsExt;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sched::{CloneFlags, unshare};
    use shared_abi::steering::{Rules, hash};

    use super::*;

    const QUEUES: usize = 4;

    /// The queues of a new tap, and a packet socket on its other side.
    fn tap(name: &str) -> (Vec<File>, File) {
        let mut ifr_name = [0; libc::IFNAMSIZ];
        ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from.cast_signed());
        let ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE) as i16;
        let request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags } };
        let queue = || {
            let file = File::options()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")
                .unwrap();
            // SAFETY: TUNSETIFF reads and writes one ifreq, which lives here.
            let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
            Errno::result(done).unwrap();
            file
        };
        let queues = (0..QUEUES).map(|_| queue()).collect();
        // SAFETY: no memory is passed.
        let raw = Errno::result(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) }).unwrap();
        // SAFETY: the kernel has just made this descriptor for us.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: libc::IFF_UP as i16 };
        let mut request = libc::ifreq { ifr_name, ifr_ifru };
        // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives here.
        Errno::result(unsafe { libc::ioctl(raw, libc::SIOCSIFFLAGS, &raw const request) }).unwrap();
        // SAFETY: SIOCGIFINDEX writes one ifreq, which lives here.
        Errno::result(unsafe { libc::ioctl(raw, libc::SIOCGIFINDEX, &raw mut request) }).unwrap();
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            // SAFETY: SIOCGIFINDEX has filled in the index.
            sll_ifindex: unsafe { request.ifr_ifru.ifru_ifindex },
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is a sockaddr_ll, which lives here.
        Errno::result(unsafe { libc::bind(raw, (&raw const address).cast(), size) }).unwrap();
        (queues, socket.into())
    }

    /// Writes the table as a backend does.
    fn write(table: &OwnedFd, words: &[u32]) {
        let (all, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), WORDS * 4, all, shared, table.as_raw_fd(), 0) };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: the mapping has WORDS words, as `words` has, and nobody refers to it.
        unsafe { std::ptr::copy_nonoverlapping(words.as_ptr(), start.cast(), words.len()) };
        // SAFETY: the mapping was made above and nothing refers to it.
        assert_eq!(unsafe { libc::munmap(start, WORDS * 4) }, 0);
    }

    /// On which queue this frame comes.
    fn comes_on(queues: &mut [File], wire: &mut File, frame: &[u8]) -> usize {
        wire.write_all(frame).unwrap();
        let mut fds: Vec<_> =
            queues.iter().map(|queue| PollFd::new(queue.as_fd(), PollFlags::POLLIN)).collect();
        assert!(poll(&mut fds, PollTimeout::from(5000_u16)).unwrap() == 1, "on one queue");
        let at = fds.iter().position(|fd| fd.any() == Some(true)).unwrap();
        drop(fds);
        let mut read = [0; 2000];
        let length = queues[at].read(&mut read).unwrap();
        assert_eq!(&read[..length], frame);
        at
    }

    fn ether(tag: bool, kind: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if tag {
            frame.extend([0x81, 0, 0, 5]);
        }
        frame.extend(kind.to_be_bytes());
        frame.extend(packet);
        frame.resize(frame.len().max(60), 0);
        frame
    }

    fn v4(options: usize, protocol: u8, fragment: u16, n: u8) -> (Vec<u8>, Vec<u8>) {
        let (from, to) = (Ipv4Addr::new(10, 0, n, 1).octets(), Ipv4Addr::new(10, 1, 0, n).octets());
        let ports = [0x12, n, 0x34, n ^ 0x55];
        let mut packet = vec![0x45 + options as u8, 0, 0, 60, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet.extend([from, to].concat());
        packet.extend(vec![1; options * 4]);
        packet.extend(ports);
        packet.extend([0; 20]);
        (packet, [&from[..], &to, &ports].concat())
    }

    fn v6(protocol: u8, n: u16) -> (Vec<u8>, Vec<u8>) {
        let (from, to) =
            (Ipv6Addr::new(0xfd00, 0, n, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfd00, 0, 0, 0, 9, n, 0, 2));
        let ports = [0x12, n as u8, 0x34, 7];
        let mut packet = vec![0x60, 0, 0, 0, 0, 24, protocol, 64];
        packet.extend([from.octets(), to.octets()].concat());
        let tuple = [&packet[8..], &ports].concat();
        packet.extend(ports);
        packet.extend([0; 20]);
        (packet, tuple)
    }

    #[test]
    fn every_frame_comes_on_the_queue_that_the_rules_say() {
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("run this test as root: it makes a network namespace and a tap");
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let (mut queues, mut wire) = tap("steered");
        let table = steer(&queues[0]).unwrap();
        let mut rules = Rules { unclassified: 3, ..Rules::even(QUEUES as u16) };
        for types in [rules.hash_types, HASH_IPV4 | HASH_IPV6, HASH_TCPV4 | HASH_UDPV6, 0] {
            rules.hash_types = types;
            let words = rules.words().unwrap();
            write(&table, &words);
            let expected = |tuple: &[u8], addresses: usize, ports: u32, ip: u32| match types {
                types if types & ports != 0 => hash(&words, tuple) as usize % QUEUES,
                types if types & ip != 0 => hash(&words, &tuple[..addresses]) as usize % QUEUES,
                _ => 3,
            };
            let mut seen = [0; QUEUES];
            for n in 0..40 {
                for (tag, options, protocol, fragment, ports) in [
                    (false, 0, 6, 0, HASH_TCPV4),
                    (true, 0, 17, 0x4000, HASH_UDPV4),
                    (false, 3, 6, 0, HASH_TCPV4),
                    (false, 0, 17, 0x2000, 0),
                    (true, 0, 6, 0x0010, 0),
                    (false, 0, 1, 0, 0),
                ] {
                    let (packet, tuple) = v4(options, protocol, fragment, n);
                    let at = comes_on(&mut queues, &mut wire, &ether(tag, 0x800, &packet));
                    assert_eq!(
                        at,
                        expected(&tuple, 8, ports, HASH_IPV4),
                        "{types:#x} {tag} {options} {protocol} {n}"
                    );
                    seen[at] += 1;
                }
                for (tag, protocol, ports) in [(false, 6, HASH_TCPV6), (true, 17, HASH_UDPV6), (false, 58, 0)]
                {
                    let (packet, tuple) = v6(protocol, n.into());
                    let at = comes_on(&mut queues, &mut wire, &ether(tag, 0x86dd, &packet));
                    assert_eq!(at, expected(&tuple, 32, ports, HASH_IPV6), "{types:#x} {tag} {protocol} {n}");
                }
            }
            assert!(types == 0 || seen.iter().all(|count| *count > 0), "{seen:?}");
            assert_eq!(comes_on(&mut queues, &mut wire, &ether(false, 0x806, &[1; 46])), 3);
        }
    }
}
