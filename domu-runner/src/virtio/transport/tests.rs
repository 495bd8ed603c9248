//! The transport as a driver sees it through the bus, in front of a real vhost-user backend and of bad ones.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use shared_abi::control::DeviceFeatures;
use vhost::vhost_user::{Listener, VhostUserProtocolFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::super::common::{VERSION_1, status};
use super::*;
use crate::bus::BusDevice;
use crate::pci::{Ecam, Root, Window};

const MINUTE: Duration = Duration::from_secs(60);
/// Where the test puts the ring of queue `n`.
const RING: u64 = 0x10_0000;

/// Completes every chain with a written length of 7, and has 16 bytes of configuration.
struct Echo {
    memory: Option<GuestMemoryAtomic<GuestMemoryMmap>>,
    config: Vec<u8>,
}

impl VhostUserBackendMut for Echo {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        2
    }
    fn max_queue_size(&self) -> usize {
        256
    }
    fn features(&self) -> u64 {
        VERSION_1 | 1 << 30 | 1 << 33 | 1 << 34 | 1 << 9
    }
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
    }
    fn set_event_idx(&mut self, _: bool) {}
    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> std::io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config[offset as usize..(offset + size) as usize].to_vec()
    }
    fn set_config(&mut self, offset: u32, data: &[u8]) -> std::io::Result<()> {
        // Of this configuration only the last byte is the driver's to write.
        if (offset, data.len()) == (15, 1) {
            self.config[15] = data[0];
        }
        Ok(())
    }
    fn handle_event(
        &mut self,
        queue: u16,
        _: EventSet,
        vrings: &[VringRwLock],
        _: usize,
    ) -> std::io::Result<()> {
        let memory = self.memory.as_ref().unwrap().memory();
        let vring = &vrings[usize::from(queue)];
        let next = || vring.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone());
        let mut heads = std::iter::from_fn(next).map(|chain| chain.head_index()).collect::<Vec<_>>();
        if heads.is_empty() {
            return Ok(());
        }
        heads.drain(..).for_each(|head| vring.add_used(head, 7).unwrap());
        vring.signal_used_queue()
    }
}

fn echo() -> UnixStream {
    echo_with((0..16).collect())
}

fn echo_with(config: Vec<u8>) -> UnixStream {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("echo.sock");
    let backend = Arc::new(std::sync::RwLock::new(Echo { memory: None, config }));
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("echo".into(), backend, memory).unwrap();
    let mut listener = Listener::new(&path, true).unwrap();
    let stream = UnixStream::connect(&path).unwrap();
    daemon.start(&mut listener).unwrap();
    // It hangs when it is dropped without an exit event; it ends with the test's process.
    std::mem::forget(daemon);
    stream
}

fn device(queues: u16, config: DeviceConfig) -> DeviceSpec {
    DeviceSpec {
        id: "echo0".parse().unwrap(),
        virtio_type: 42,
        pci_class: 0xff_0000,
        queues,
        queue_size: 256,
        config,
        features: DeviceFeatures::default(),
        slot: None,
    }
}

/// A machine with one device, and a driver's hands on it.
struct Machine {
    root: Arc<Root>,
    transport: Arc<Transport>,
    ram: GuestRam,
    lost: Mutex<Receiver<DeviceId>>,
}

impl Machine {
    fn new(device: &DeviceSpec, socket: UnixStream, patience: Duration) -> Result<Self, TransportError> {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let vm = Arc::new(vm);
        let ram = GuestRam::new(16 << 20).unwrap();
        let router = Arc::new(IrqRouter::new(vm.clone()).unwrap());
        let (sender, lost) = channel();
        let watcher =
            Watcher::start(patience, &Gate::none(), move |device| sender.send(device.clone()).unwrap())
                .unwrap();
        let (description, transport) = Transport::new(device, &ram, vm, router, &watcher, &Gate::none())?;
        transport.connect(socket.into())?;
        let mut root = Root::default();
        root.add(None, description, transport.clone()).unwrap();
        let machine = Self { root: Arc::new(root), transport, ram, lost: Mutex::new(lost) };
        // Memory decoding on, MSI-X on with every vector masked.
        machine.poke_config(0x04, &[6, 0]);
        machine.poke_config(0x42, &[0, 0x80]);
        Ok(machine)
    }

    fn echo() -> Self {
        Self::new(&device(2, DeviceConfig::FromBackend(16)), echo(), MINUTE).unwrap()
    }

    fn poke_config(&self, register: u64, data: &[u8]) {
        Ecam(self.root.clone()).write(1 << 15 | register, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        Window(self.root.clone()).write(offset, data);
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xff; N];
        Window(self.root.clone()).read(offset, &mut data);
        data
    }

    fn status(&self) -> u8 {
        self.read::<1>(20)[0]
    }

    /// A reset, then all of a driver's steps with `queues` queues of 8 entries, each with its vector.
    fn start(&self, queues: u16) {
        self.start_with(queues, VERSION_1);
    }

    fn start_with(&self, queues: u16, features: u64) {
        self.write(20, &[0]);
        assert_eq!(self.status(), 0);
        self.write(20, &[3]);
        for select in 0..2u32 {
            self.write(8, &select.to_le_bytes());
            self.write(12, &((features >> (32 * select)) as u32).to_le_bytes());
        }
        self.write(20, &[11]);
        assert_eq!(self.status(), 11);
        for queue in 0..queues {
            let ring = RING + 0x1_0000 * u64::from(queue);
            self.ram.memory.write_slice(&[0; 0x3000], GuestAddress(ring)).unwrap();
            self.write(22, &queue.to_le_bytes());
            self.write(24, &8u16.to_le_bytes());
            self.write(26, &queue.to_le_bytes());
            for (register, address) in [(32, ring), (40, ring + 0x1000), (48, ring + 0x2000)] {
                self.write(register, &(address as u32).to_le_bytes());
            }
            self.write(28, &1u16.to_le_bytes());
            assert_eq!(self.read(28), 1u16.to_le_bytes());
        }
        self.write(20, &[15]);
        assert_eq!(self.status(), 15);
    }

    /// Makes buffer number `count` available, kicks, and waits until it is used.
    fn exchange(&self, queue: u16, count: u16, kick: impl Fn(&Self)) {
        let memory = &self.ram.memory;
        let ring = RING + 0x1_0000 * u64::from(queue);
        // Descriptor 0: 16 bytes, to be written by the device.
        memory.write_obj(0x20_0000u64, GuestAddress(ring)).unwrap();
        memory.write_obj([16u16, 0, 2, 0], GuestAddress(ring + 8)).unwrap();
        memory.write_obj(0u16, GuestAddress(ring + 0x1004 + 2 * u64::from((count - 1) % 8))).unwrap();
        memory.write_obj(count, GuestAddress(ring + 0x1002)).unwrap();
        kick(self);
        until(|| memory.read_obj::<u16>(GuestAddress(ring + 0x2002)).unwrap() == count);
    }

    /// The next device reported as lost, within `time`.
    fn lost(&self, time: Duration) -> Option<String> {
        lock(&self.lost).recv_timeout(time).ok().map(String::from)
    }

    fn pending(&self) -> u64 {
        u64::from_le_bytes(self.read(0x5000))
    }
}

fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < MINUTE, "it never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn bell(queue: u16) -> impl Fn(&Machine) {
    move |machine| machine.write(0x3000 + 4 * u64::from(queue), &queue.to_le_bytes())
}

#[test]
fn a_driver_sees_the_backends_device_without_what_the_transport_cannot_carry() {
    let machine = Machine::echo();
    let mut id = [0; 4];
    Ecam(machine.root.clone()).read(1 << 15, &mut id);
    assert_eq!(id, [0xf4, 0x1a, 0x40 + 42, 0x10]);
    let features = [0u32, 1].map(|select| {
        machine.write(0, &select.to_le_bytes());
        u32::from_le_bytes(machine.read(4))
    });
    assert_eq!(features, [1 << 9, 1], "bit 9 and VERSION_1");
    assert_eq!(machine.read(18), 2u16.to_le_bytes());
    assert_eq!(machine.read(0x2004), [4, 5, 6, 7]);
    assert_eq!(machine.read(0x200e), [14, 15, 0, 0], "zeroes beyond its end");
}

#[test]
fn buffers_are_served_and_interrupts_kept_while_masked_start_after_start() {
    let machine = Machine::echo();
    for _ in 0..3 {
        machine.start(2);
        for count in 1..20 {
            machine.exchange(1, count, bell(1));
        }
        until(|| machine.pending() == 2);
        machine.exchange(0, 1, bell(0));
        until(|| machine.pending() == 3);
    }
    machine.write(20, &[0]);
    assert_eq!(machine.pending(), 0);
    assert_eq!(machine.lost(Duration::ZERO), None);
}

#[test]
fn a_doorbell_rings_wherever_the_bar_is_and_through_the_access_window() {
    let machine = Machine::echo();
    machine.start(1);
    machine.exchange(0, 1, bell(0));
    machine.poke_config(0x10, &0xc800_0000u32.to_le_bytes());
    machine.exchange(0, 2, |machine| machine.write(0x800_3000, &[0, 0]));
    machine.poke_config(0x04, &[0, 0]);
    let mut window = [0];
    let root = machine.root.clone();
    // The capability before the last is at the end of the list: find the one of type 5.
    let mut at = 0x40;
    loop {
        let mut header = [0; 4];
        Ecam(root.clone()).read(1 << 15 | at, &mut header);
        if header[0] == 9 && header[3] == 5 {
            window[0] = at as u8;
            break;
        }
        at = header[1].into();
    }
    let window = u64::from(window[0]);
    machine.poke_config(window + 8, &0x3000u32.to_le_bytes());
    machine.poke_config(window + 12, &2u32.to_le_bytes());
    machine.exchange(0, 3, |machine| machine.poke_config(window + 16, &[0, 0]));
}

#[test]
fn the_driver_may_write_what_the_backend_lets_it_write() {
    let machine = Machine::echo();
    machine.write(0x200f, &[99]);
    assert_eq!(machine.read(0x200c), [12, 13, 14, 99]);
    // Ignored by the backend; beyond the end.
    machine.write(0x2000, &[1]);
    machine.write(0x200e, &[1; 4]);
    machine.write(0x2ffc, &[1; 8]);
    assert_eq!(machine.read(0x2000), [0, 1]);
    assert_eq!(machine.read(0x200c), [12, 13, 14, 99]);
    machine.start(1);
    machine.exchange(0, 1, bell(0));
}

#[test]
fn a_configuration_that_dom0_gives_is_read_only() {
    let config = DeviceConfig::Given(vec![9; 4]);
    let machine = Machine::new(&device(1, config), echo(), MINUTE).unwrap();
    machine.write(0x2000, &[1]);
    assert_eq!(machine.read(0x2000), [9, 9, 9, 9, 0]);
}

#[test]
fn features_that_are_not_the_backends_matter_are_offered_or_not_and_it_never_hears_of_them() {
    const OWN: u64 = 1 << 5;
    const WITHHELD: u64 = 1 << 9;
    let plain = device(1, DeviceConfig::Given(Vec::new()));
    let offered = |machine: &Machine| {
        machine.write(0, &[0; 4]);
        u64::from(u32::from_le_bytes(machine.read(4)))
    };
    let machine = Machine::new(&plain, echo(), MINUTE).unwrap();
    assert_eq!(offered(&machine) & (OWN | WITHHELD), WITHHELD);
    let features = DeviceFeatures { own: OWN, withheld: WITHHELD };
    let machine = Machine::new(&DeviceSpec { features, ..plain }, echo(), MINUTE).unwrap();
    assert_eq!(offered(&machine) & (OWN | WITHHELD), OWN);
    // The backend breaks off if it is told of a feature that it does not offer.
    machine.start_with(1, VERSION_1 | OWN);
    machine.exchange(0, 1, bell(0));
    assert_eq!(machine.lost(Duration::from_millis(50)), None);
}

#[test]
fn a_description_out_of_range_or_with_more_queues_than_the_backend_has_is_refused() {
    let given = || DeviceConfig::Given(Vec::new());
    for (bad, named) in [
        (device(0, given()), "queues is 0"),
        (device(65, given()), "queues is 65"),
        (DeviceSpec { queue_size: 3, ..device(1, given()) }, "queue_size is 3"),
        (DeviceSpec { virtio_type: 0, ..device(1, given()) }, "virtio_type is 0"),
        (DeviceSpec { pci_class: 1 << 24, ..device(1, given()) }, "pci_class is 16777216"),
        (device(1, DeviceConfig::FromBackend(257)), "config is 257"),
    ] {
        let error = Machine::new(&bad, echo(), MINUTE).err().unwrap().to_string();
        assert!(error.contains(named), "{error}");
    }
    let error = Machine::new(&device(3, given()), echo(), MINUTE).err().unwrap();
    assert!(error.source().unwrap().to_string().contains("has 2 queues, 3 are wanted"));
}

#[test]
fn a_backend_that_hangs_up_is_reported_once_and_its_device_stands_still() {
    let socket = echo();
    let peer = socket.try_clone().unwrap();
    let machine = Machine::new(&device(1, DeviceConfig::FromBackend(16)), socket, MINUTE).unwrap();
    machine.start(1);
    machine.exchange(0, 1, bell(0));
    peer.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(machine.lost(MINUTE).as_deref(), Some("echo0"));
    bell(0)(&machine);
    assert_eq!(machine.status(), 15);
    machine.write(0x200f, &[99]);
    assert_eq!(machine.read(0x200f), [15]);
    assert_eq!(machine.lost(Duration::from_millis(50)), None);
}

#[test]
fn a_reset_is_not_over_before_the_remains_of_a_lost_backend_are() {
    let socket = echo();
    let peer = socket.try_clone().unwrap();
    let machine = Machine::new(&device(1, DeviceConfig::FromBackend(16)), socket, MINUTE).unwrap();
    machine.start(1);
    peer.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(machine.lost(MINUTE).as_deref(), Some("echo0"));
    machine.write(20, &[0]);
    // A driver that does not wait changes nothing.
    machine.write(20, &[1]);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(machine.status(), status::NEEDS_RESET);
    machine.transport.attach(echo().into()).unwrap();
    assert_eq!(machine.status(), 0);
    machine.start(1);
    machine.exchange(0, 1, bell(0));
    // One that is there says itself when it has stopped; of one that is lost, dom0 does.
    machine.transport.gone();
    machine.exchange(0, 2, bell(0));
    let socket = echo();
    let peer = socket.try_clone().unwrap();
    machine.transport.attach(socket.into()).unwrap();
    peer.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(machine.lost(MINUTE).as_deref(), Some("echo0"));
    machine.write(20, &[0]);
    assert_eq!(machine.status(), status::NEEDS_RESET);
    machine.transport.gone();
    assert_eq!(machine.status(), 0);
    machine.transport.attach(echo().into()).unwrap();
    machine.start(1);
    // One that has finished leaves nothing behind.
    assert!(machine.transport.detach());
    machine.write(20, &[0]);
    assert_eq!(machine.status(), 0);
}

#[test]
fn a_device_goes_on_with_another_backend_and_is_kicked_by_what_came_meanwhile() {
    let socket = echo();
    let peer = std::cell::RefCell::new(socket.try_clone().unwrap());
    let machine = Machine::new(&device(2, DeviceConfig::FromBackend(16)), socket, MINUTE).unwrap();
    machine.start(2);
    let mut count = 0;
    let mut exchange = |kick: &dyn Fn(&Machine)| {
        count += 1;
        machine.exchange(1, count, kick);
    };
    for killed in [true, false, true, true] {
        exchange(&bell(1));
        exchange(&bell(1));
        if killed {
            peer.borrow().shutdown(std::net::Shutdown::Both).unwrap();
            assert_eq!(machine.lost(MINUTE).as_deref(), Some("echo0"));
        } else {
            assert!(machine.transport.detach());
            assert!(!machine.transport.detach(), "nobody is there any more");
        }
        exchange(&|machine| {
            bell(1)(machine);
            std::thread::sleep(Duration::from_millis(20));
            let new = echo();
            peer.replace(new.try_clone().unwrap());
            let still = machine.transport.attach(new.into()).unwrap();
            assert!((Duration::from_millis(20)..MINUTE).contains(&still), "{still:?}");
        });
    }
    assert_eq!(machine.lost(Duration::from_millis(50)), None, "a detached one is not lost");
    until(|| machine.pending() & 2 == 2);
    // One that takes the place of a backend that is still there.
    machine.transport.attach(echo().into()).unwrap();
    exchange(&bell(1));
    assert_eq!(machine.lost(Duration::from_millis(50)), None);
}

#[test]
fn a_changed_configuration_is_told_once_and_a_backend_that_offers_less_is_refused() {
    let machine = Machine::echo();
    machine.start(1);
    machine.write(16, &1u16.to_le_bytes());
    assert_eq!((machine.read(21), machine.pending() & 2), ([0], 0));
    machine.transport.attach(echo().into()).unwrap();
    assert_eq!((machine.read(21), machine.pending() & 2), ([0], 0), "it is the same configuration");
    let mut changed: Vec<u8> = (0..16).collect();
    changed[0] = 77;
    machine.transport.attach(echo_with(changed).into()).unwrap();
    assert_eq!((machine.read(21), machine.read(0x2000), machine.pending() & 2), ([1], [77], 2));
    machine.transport.read_config();
    assert_eq!(machine.read(21), [1]);
    // This one offers VERSION_1 alone. Who has agreed on no more misses the configuration only.
    let refused = |needed: &str| {
        let error = machine.transport.attach(mute_after(4).into()).unwrap_err();
        assert!(error.source().unwrap().to_string().contains(needed), "{error:?}");
    };
    refused("CONFIG");
    machine.write(20, &[0]);
    refused("0x200");
    machine.transport.attach(echo().into()).unwrap();
    machine.start(2);
    machine.exchange(0, 1, bell(0));
}

/// Hands `socket` to an [`echo`] backend message by message, and from the `after`th on to nobody.
fn mute_after(after: usize) -> UnixStream {
    let (front, mut socket) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        for _ in 0..after {
            let mut header = [0; 12];
            if socket.read_exact(&mut header).is_err() {
                return;
            }
            let word =
                |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let mut body = vec![0; word(8) as usize];
            socket.read_exact(&mut body).unwrap();
            // GET_FEATURES, GET_PROTOCOL_FEATURES (REPLY_ACK), or an acknowledgement if one is wanted.
            let value: u64 = match word(0) {
                1 => VERSION_1 | 1 << 30,
                15 => 8,
                _ if word(4) & 8 != 0 => 0,
                _ => continue,
            };
            let mut reply = [0; 20];
            reply[..4].copy_from_slice(&header[..4]);
            reply[4..8].copy_from_slice(&5u32.to_le_bytes());
            reply[8..12].copy_from_slice(&8u32.to_le_bytes());
            reply[12..].copy_from_slice(&value.to_le_bytes());
            if socket.write_all(&reply).is_err() {
                return;
            }
        }
        std::thread::sleep(MINUTE);
        drop(socket);
    });
    front
}

#[test]
fn a_backend_that_stops_answering_holds_a_vcpu_for_a_moment_and_is_given_up_by_the_watcher() {
    let patience = Duration::from_millis(300);
    let given = || DeviceConfig::Given(Vec::new());
    // During the negotiation: the machine is not built. Four messages are exchanged there.
    for after in [0, 1, 3] {
        let start = Instant::now();
        assert!(Machine::new(&device(1, given()), mute_after(after), patience).is_err());
        assert!(start.elapsed() < MINUTE / 2);
    }
    // During the start, message by message; after it, at the reset.
    for after in 4..14 {
        let machine = Machine::new(&device(1, given()), mute_after(after), patience).unwrap();
        let start = Instant::now();
        machine.start(1);
        machine.write(20, &[0]);
        assert!(
            start.elapsed() < patience,
            "after {after} messages, a vCPU was held for {:?}",
            start.elapsed()
        );
        assert_eq!(machine.status(), status::NEEDS_RESET);
        assert_eq!(machine.lost(MINUTE).as_deref(), Some("echo0"));
        assert_eq!(machine.status(), status::NEEDS_RESET);
    }
}

#[test]
fn a_backend_that_talks_nonsense_is_refused() {
    for nonsense in [&[0xff; 4096][..], &[0; 4096], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let (front, mut back) = UnixStream::pair().unwrap();
        back.write_all(nonsense).unwrap();
        let device = device(1, DeviceConfig::Given(Vec::new()));
        assert!(Machine::new(&device, front, Duration::from_millis(100)).is_err());
    }
}

#[test]
fn a_ring_that_is_not_in_ram_never_reaches_the_backend() {
    let machine = Machine::echo();
    machine.write(20, &[0]);
    machine.write(8, &1u32.to_le_bytes());
    machine.write(12, &1u32.to_le_bytes());
    machine.write(20, &[11]);
    machine.write(32, &0x0200_0000u64.to_le_bytes());
    machine.write(28, &[1, 0]);
    machine.write(20, &[15]);
    assert_eq!(machine.status(), 11 | status::NEEDS_RESET);
    machine.start(1);
    machine.exchange(0, 1, bell(0));
    assert_eq!(machine.lost(Duration::ZERO), None);
}

#[test]
fn vcpus_that_fight_over_a_device_do_not_deadlock() {
    let machine = Machine::echo();
    std::thread::scope(|scope| {
        for seed in 1..4u64 {
            let machine = &machine;
            scope.spawn(move || {
                let mut random = seed;
                for _ in 0..3000 {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let value = (random >> 40).to_le_bytes();
                    let width = 1 << (random >> 20 & 3);
                    let value = &value[..width];
                    match random >> 60 {
                        0 => machine.write(20, &[15]),
                        1 => machine.write(20, &[0]),
                        2 => machine.poke_config(0x42, &value[..1]),
                        3 => machine.poke_config(0x04, &value[..1]),
                        4 | 5 => machine.write(0x4000 + (random >> 30 & 0x3f), value),
                        6 => drop(machine.pending()),
                        7 => machine.write(0x3000 + (random >> 30 & 0xf), value),
                        8 => machine.poke_config(random >> 30 & 0xff, value),
                        _ => machine.write(random >> 30 & 0x3f, value),
                    }
                }
            });
        }
    });
    machine.poke_config(0x10, &0xc000_0000u32.to_le_bytes());
    machine.poke_config(0x04, &[6, 0]);
    machine.start(2);
    machine.exchange(1, 1, bell(1));
}
