//! One NIC: what its driver is told, and its threads.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use domus_startup::threads;
use shared_abi::MacAddress;
use vu_server::{Device, Orders, Port, Server, say};

use crate::features::{self, header_len, tap_offloads};
use crate::rx::Receive;
use crate::tap::Tap;
use crate::tx::Transmit;
use crate::worker;

/// Queue 0 receives, queue 1 transmits (virtio 1.3 §5.1.2).
const QUEUES: usize = 2;

/// What a driver is told of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// Its address; none if the frontend decides it.
    pub mac: Option<MacAddress>,
    /// Its MTU in bytes; none if the frontend decides it.
    pub mtu: Option<u16>,
}

/// The device behind a connection. The tap is set up as the driver's features are settled.
#[derive(Debug)]
struct Nic {
    name: Arc<str>,
    card: Card,
    tap: Arc<Tap>,
}

impl Nic {
    fn configure(&self, features: u64) {
        if let Err(error) = self.tap.configure(header_len(features), tap_offloads(features)) {
            say::limited(format_args!("{}: cannot set the tap's offloads: {error}", self.name));
        }
    }
}

impl Device for Nic {
    type Order = Infallible;

    fn features(&self) -> u64 {
        let mac = self.card.mac.map_or(0, |_| features::MAC);
        features::OFFERED | mac | self.card.mtu.map_or(0, |_| features::MTU)
    }

    /// `struct virtio_net_config` (virtio 1.3 §5.1.4): mac, status, max_virtqueue_pairs, mtu.
    fn config(&self) -> Vec<u8> {
        const LINK_UP: u16 = 1;
        const PAIRS: u16 = 1;
        let mut space = Vec::with_capacity(12);
        space.extend(self.card.mac.map_or([0; 6], MacAddress::bytes));
        for word in [LINK_UP, PAIRS, self.card.mtu.unwrap_or(0)] {
            space.extend(word.to_le_bytes());
        }
        space
    }

    fn set_features(&mut self, features: u64) {
        self.configure(features);
    }

    fn reset(&mut self) {
        self.configure(vu_server::F_VERSION_1);
    }
}

/// A NIC whose threads are still to be started.
#[derive(Debug)]
pub struct Prepared {
    name: Arc<str>,
    card: Card,
    tap: Arc<Tap>,
    ports: Vec<Port<Infallible>>,
    orders: Vec<Orders<Infallible>>,
}

impl Prepared {
    /// Makes what the threads need.
    ///
    /// # Errors
    /// The tap cannot be set up, or there is no eventfd.
    pub fn new(name: &str, card: Card, tap: Tap) -> io::Result<Self> {
        tap.configure(header_len(vu_server::F_VERSION_1), 0)?;
        let pairs = (0..QUEUES).map(|_| vu_server::worker::orders()).collect::<io::Result<Vec<_>>>()?;
        let (ports, orders) = pairs.into_iter().unzip();
        Ok(Self { name: name.into(), card, tap: Arc::new(tap), ports, orders })
    }

    /// Starts one thread for each queue and returns the server for the connection. `lost` is called, once at most, if
    /// the tap cannot be read any more.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start(self, lost: impl FnOnce(io::Error) + Send + 'static) -> io::Result<Server<impl Device>> {
        let mtu = self.card.mtu.unwrap_or(1500);
        let mut orders = self.orders.into_iter();
        let (Some(receive), Some(transmit)) = (orders.next(), orders.next()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let tap = self.tap.clone();
        threads::start(format!("rx {}", self.name), move || {
            worker::run(Receive::new(mtu, lost), &tap, &receive);
        })?;
        let tap = self.tap.clone();
        threads::start(format!("tx {}", self.name), move || {
            worker::run(Transmit::default(), &tap, &transmit);
        })?;
        let nic = Nic { name: self.name.clone(), card: self.card, tap: self.tap };
        Ok(Server::new(&self.name, nic, self.ports))
    }
}
