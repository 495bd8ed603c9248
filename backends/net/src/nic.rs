//! One NIC: what its driver has negotiated and set, and the resulting settings of the tap and the receivers.
//!
//! ```text
//!   process starts ─▶ features settled: what the driver had set is read back ─▶ commands, each kept before it holds
//!                          ▲                                                     │ RESET_DEVICE: forgotten
//!                          └── another process or another connection ◀──────────┘
//! ```
//!
//! The end of a connection changes nothing, because the tap may belong to another process by then.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use domus_startup::lock;
use shared_abi::MacAddress;
use shared_abi::control::{NicLimits, NicStatistics};
use shared_abi::steering::{ENTRIES, HASH_ALL, KEY, Rules};
use vu_server::{Port, say};

use crate::command::{self, Rights};
use crate::driver_state::{DriverState, Memory};
use crate::features::{self, header_len, tap_offloads};
use crate::link_state::LinkState;
use crate::settings::{Settings, Wanted};
use crate::statistics::Counters;
use crate::steering::Steering;
use crate::tap::Tap;
use crate::worker_command::NicCommand;

/// How long workers may take to obey.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a driver is told of a NIC, and may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// Its address; none if the frontend decides it.
    pub mac: Option<MacAddress>,
    /// Its MTU in bytes; none if the frontend decides it.
    pub mtu: Option<u16>,
    /// Its queue pairs, at least 1.
    pub pairs: u16,
    /// It has a control queue.
    pub controlled: bool,
    /// The driver may choose any address.
    pub any_mac: bool,
}

/// What is at the other end of the cable, as far as it can be set.
#[derive(Debug)]
pub enum Far {
    /// A tap: one queue for each queue pair, and the table by which it spreads frames.
    Tap {
        /// The queues.
        queues: Vec<Arc<Tap>>,
        /// The table.
        steering: Option<Steering>,
    },
    /// A stream, of which nothing can be set.
    Stream,
}

/// What the driver has settled on and set.
#[derive(Debug)]
struct Driver {
    features: u64,
    memory: Memory,
    kept: DriverState,
    /// How the tap is set, as far as that is known.
    tap: Option<Setting>,
}

/// How a tap is set.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    header: usize,
    offloads: u32,
    /// How many queues are in use.
    pairs: u16,
    /// How frames are spread over them, if the tap has a table for that.
    rules: Option<Rules>,
}

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is refused.
    Refused,
    /// It holds.
    Done,
    /// It holds, and the tap had to be set, for which the kernel holds a lock that all interfaces share.
    Costly,
}

/// A NIC, as its control queue, its connection and dom0 see it.
#[derive(Debug)]
pub struct Nic {
    name: Arc<str>,
    card: Card,
    far: Far,
    shared: Arc<LinkState>,
    /// The ways to its workers: receiver and transmitter of each pair.
    ports: Vec<Port<NicCommand>>,
    /// What they have counted, in the same order.
    counters: Vec<Arc<Counters>>,
    driver: Mutex<Driver>,
}

impl Nic {
    /// A NIC whose driver has set what is kept in `state`, if that is given. It is read by [`Self::recall`].
    pub fn new(
        name: &str,
        card: Card,
        far: Far,
        shared: Arc<LinkState>,
        ports: Vec<Port<NicCommand>>,
        state: Option<OwnedFd>,
    ) -> Self {
        let kept = DriverState::new(state.map(Into::into));
        let counters = ports.iter().map(|_| Arc::default()).collect();
        let driver = Mutex::new(Driver { features: 0, memory: Memory::default(), kept, tap: None });
        Self { name: name.into(), card, far, shared, ports, counters, driver }
    }

    /// Reads what the process before this one has kept. To be called once, before anybody is served, and behind the
    /// seal: that process may have been its guest's.
    ///
    /// # Errors
    /// The tap cannot be set up.
    pub fn recall(&self) -> io::Result<()> {
        let mut driver = self.driver();
        driver.memory = driver.kept.load(self.card.pairs).unwrap_or_default();
        if let (Far::Tap { queues, .. }, None) = (&self.far, driver.memory.datagrams)
            && let Some(tap) = queues.first()
        {
            // Nobody has been served by this tap yet. It can be asked only by trying.
            tap.set_header(header_len(vu_server::F_VERSION_1))?;
            driver.memory.datagrams = Some(tap.set_offloads(tap_offloads(features::TAKEN)).is_ok());
            tap.set_offloads(0)?;
            driver.kept.save(&driver.memory)?;
        }
        Ok(())
    }

    /// Its name, for messages.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What its threads look at.
    pub fn shared(&self) -> &Arc<LinkState> {
        &self.shared
    }

    /// The counters of receiver and transmitter of each pair.
    pub fn counters(&self) -> &[Arc<Counters>] {
        &self.counters
    }

    fn driver(&self) -> MutexGuard<'_, Driver> {
        lock(&self.driver)
    }

    /// The features that it offers.
    pub fn offered(&self) -> u64 {
        let on = |condition: bool, features: u64| if condition { features } else { 0 };
        let own = on(self.card.mac.is_some(), features::MAC) | on(self.card.mtu.is_some(), features::MTU);
        let pairs = on(self.card.pairs > 1, features::MQ);
        let control = on(self.card.controlled, features::CONTROL);
        let far = match &self.far {
            Far::Tap { steering, .. } => {
                let datagrams = self.driver().memory.datagrams == Some(true);
                let hashing = steering.is_some() && self.card.pairs > 1 && self.card.controlled;
                features::OFFLOADS
                    | on(datagrams, features::DATAGRAMS)
                    | on(self.card.controlled, features::CTRL_GUEST_OFFLOADS)
                    | on(hashing, features::RSS)
            }
            Far::Stream => 0,
        };
        features::ALWAYS | own | pairs | control | far
    }

    /// The number of the control queue (virtio 1.3 §5.1.2): behind all pairs for a driver that knows of several, behind
    /// the first for others.
    pub fn control_queue(&self, features: u64) -> u16 {
        if features & (features::MQ | features::RSS) == 0 { 2 } else { 2 * self.card.pairs }
    }

    /// `struct virtio_net_config` (virtio 1.3 §5.1.4): mac, status, max_virtqueue_pairs, mtu, speed, duplex,
    /// rss_max_key_size, rss_max_indirection_table_length, supported_hash_types.
    pub fn config(&self) -> Vec<u8> {
        const LINK_UP: u16 = 1;
        const ANNOUNCE: u16 = 2;
        /// In Mbit/s, as a tap says of itself.
        const SPEED: u32 = 10_000;
        const FULL_DUPLEX: u8 = 1;
        let driver = self.driver();
        let announce = driver.memory.settings.announce && driver.features & features::GUEST_ANNOUNCE != 0;
        let link = self.shared.link.load(Ordering::Relaxed);
        let status = if link { LINK_UP } else { 0 } | if announce { ANNOUNCE } else { 0 };
        let mac = driver.memory.settings.mac.or(self.card.mac);
        let mut space = Vec::with_capacity(24);
        space.extend(mac.map_or([0; 6], MacAddress::bytes));
        for word in [status, self.card.pairs, self.card.mtu.unwrap_or(0)] {
            space.extend(word.to_le_bytes());
        }
        space.extend(SPEED.to_le_bytes());
        space.extend([FULL_DUPLEX, KEY as u8]);
        space.extend((ENTRIES as u16).to_le_bytes());
        space.extend(HASH_ALL.to_le_bytes());
        space
    }

    /// A driver has settled on these features, or the one that had goes on with this process.
    pub fn settled(&self, features: u64) {
        let mut driver = self.driver();
        // Another process may have served it since this one started.
        if let Some(memory) = driver.kept.load(self.card.pairs) {
            driver.memory.settings = memory.settings;
        }
        driver.features = features;
        // Nobody knows what the tap's owner before this one has set.
        driver.tap = None;
        self.apply(&mut driver);
    }

    /// The connection is gone. The driver may go on with another process, which may serve the tap already. Without a
    /// state file the settings end here: the next driver is another one.
    pub fn abandoned(&self) {
        if !self.driver().kept.is_kept() {
            self.forget_driver();
        }
    }

    /// The driver is gone, and what it has set.
    pub fn forget_driver(&self) {
        let mut driver = self.driver();
        driver.memory.settings = Settings::default();
        driver.features = vu_server::F_VERSION_1;
        if let Err(error) = driver.kept.save(&driver.memory) {
            say::limited(format_args!("{}: the NIC's state cannot be kept: {error}", self.name));
        }
        self.apply(&mut driver);
    }

    /// Obeys a command of the control queue. When it returns the command holds, and will after this process.
    pub fn command(&self, command: &[u8], features: u64) -> Outcome {
        let mut driver = self.driver();
        let mac = self.card.mac.filter(|_| !self.card.any_mac);
        let rights = Rights { features, pairs: self.card.pairs, mac };
        let Ok(settings) = command::obey(&driver.memory.settings, rights, command) else {
            return Outcome::Refused;
        };
        if settings == driver.memory.settings {
            return Outcome::Done;
        }
        let memory = Memory { settings, ..driver.memory.clone() };
        if let Err(error) = driver.kept.save(&memory) {
            say::limited(format_args!("{}: the NIC's state cannot be kept: {error}", self.name));
            return Outcome::Refused;
        }
        driver.memory = memory;
        if self.apply(&mut driver) { Outcome::Costly } else { Outcome::Done }
    }

    /// How many pairs the driver uses.
    fn pairs(&self, driver: &Driver) -> u16 {
        if driver.features & (features::MQ | features::RSS) == 0 {
            1
        } else if self.card.controlled {
            driver.memory.settings.pairs
        } else {
            // Whoever has the control queue runs the rings that are in use.
            self.card.pairs
        }
    }

    /// Lets everything be as the driver has set it. True if the tap had to be set.
    fn apply(&self, driver: &mut Driver) -> bool {
        let settings = &driver.memory.settings;
        let pairs = self.pairs(driver);
        let wanted = Arc::new(Wanted::new(settings, driver.features, self.card.mac));
        for (pair, receiver) in (0..).zip(self.ports.iter().step_by(2)) {
            // A worker that has ended has said so, and receives nothing.
            let _ = receiver.tell(NicCommand::Wanted(wanted.clone()));
            let _ = receiver.tell(NicCommand::Active(pair < pairs));
        }
        if let Err(why) = self.settle(self.ports.iter().step_by(2)) {
            say::limited(format_args!("{why}"));
        }
        let Far::Tap { queues, steering } = &self.far else { return false };
        let setting = Setting {
            header: header_len(driver.features),
            offloads: tap_offloads(settings.offloads.unwrap_or(driver.features) & driver.features),
            pairs,
            rules: steering.is_some().then(|| settings.rules(pairs)),
        };
        if driver.tap.as_ref() == Some(&setting) {
            return false;
        }
        match self.set_tap(queues, steering.as_ref(), &setting) {
            Ok(()) => driver.tap = Some(setting),
            Err(error) => {
                driver.tap = None;
                say::limited(format_args!("{}: the tap cannot be set: {error}", self.name));
            }
        }
        true
    }

    fn set_tap(&self, queues: &[Arc<Tap>], steering: Option<&Steering>, setting: &Setting) -> io::Result<()> {
        for queue in queues {
            // A queue that is detached does not answer, and has the header of the others.
            let _ = queue.set_header(setting.header);
        }
        queues.first().map_or(Ok(()), |queue| queue.set_offloads(setting.offloads))?;
        if let (Some(steering), Some(rules)) = (steering, &setting.rules) {
            // The settings are sound, so the rules are.
            steering.set(rules);
        } else if self.card.controlled {
            // Those in use keep their order.
            let (used, unused) = queues.split_at(queues.len().min(setting.pairs.into()));
            unused.iter().rev().try_for_each(|queue| queue.attach(false))?;
            used.iter().skip(1).try_for_each(|queue| queue.attach(true))?;
        }
        Ok(())
    }

    /// Waits until these workers have done what they were told.
    ///
    /// # Errors
    /// One line: a worker has ended, or takes too long.
    fn settle<'a>(&self, workers: impl ExactSizeIterator<Item = &'a Port<NicCommand>>) -> Result<(), String> {
        let count = workers.len();
        let (sender, settled) = sync_channel(count);
        for port in workers {
            port.tell(NicCommand::Settle(sender.clone())).map_err(|gone| format!("{}: {gone}", self.name))?;
        }
        let end = Instant::now() + PATIENCE;
        for _ in 0..count {
            settled
                .recv_timeout(end.saturating_duration_since(Instant::now()))
                .map_err(|_| format!("{}: its threads do not answer", self.name))?;
        }
        Ok(())
    }

    /// Plugs the cable in or pulls it. When it returns frames pass again or no more.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn set_link(&self, up: bool) -> Result<(), String> {
        self.shared.link.store(up, Ordering::Relaxed);
        self.look()
    }

    /// Changes the limits.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn limit(&self, limits: &NicLimits) -> Result<(), String> {
        self.shared.receive.set(limits.receive);
        self.shared.transmit.set(limits.transmit);
        self.look()
    }

    fn look(&self) -> Result<(), String> {
        for port in &self.ports {
            port.tell(NicCommand::Look).map_err(|gone| format!("{}: {gone}", self.name))?;
        }
        self.settle(self.ports.iter())
    }

    /// Has the driver announce itself, when it reads its configuration space next.
    ///
    /// # Errors
    /// It cannot; one line for the operator.
    pub fn announce(&self) -> Result<(), String> {
        let mut driver = self.driver();
        if driver.features & features::GUEST_ANNOUNCE == 0 {
            return Err(format!("NIC {}: its driver does not announce itself", self.name));
        }
        driver.memory.settings.announce = true;
        driver
            .kept
            .save(&driver.memory)
            .map_err(|error| format!("NIC {}: its state cannot be kept: {error}", self.name))
    }

    /// Gives it a new connection.
    ///
    /// # Errors
    /// It is not on a stream, or its threads have ended; one line for the operator.
    pub fn connect(&self, socket: OwnedFd) -> Result<(), String> {
        if matches!(self.far, Far::Tap { .. }) {
            return Err(format!("NIC {} is on a tap: it has no connection", self.name));
        }
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(true).map_err(|error| format!("NIC {}: its socket: {error}", self.name))?;
        let socket = Arc::new(socket);
        for port in &self.ports {
            port.tell(NicCommand::Connected(socket.clone()))
                .map_err(|gone| format!("{}: {gone}", self.name))?;
        }
        self.settle(self.ports.iter())
    }

    /// What it has done, and how it is set.
    pub fn statistics(&self) -> NicStatistics {
        let driver = self.driver();
        let connected = self.shared.connected.load(Ordering::Relaxed);
        let mut sum = NicStatistics {
            link_up: connected && self.shared.link.load(Ordering::Relaxed),
            pairs: self.pairs(&driver),
            promiscuous: driver.memory.settings.promiscuous,
            ..NicStatistics::default()
        };
        for pair in self.counters.chunks(2) {
            let [receive, transmit] = pair else { break };
            receive.add_to(&mut sum.receive);
            transmit.add_to(&mut sum.transmit);
        }
        sum
    }
}
