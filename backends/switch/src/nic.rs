//! A port as its driver sees it, and what the threads that serve it share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use domus_net::features;
use domus_net::filter::Filter;
use domus_net::rate_limit::RateLimit;
use domus_net::statistics::Counters;
use shared_abi::control::{NetCard, NicStatistics, TrafficStatistics};
use shared_abi::ids::MacAddress;
use vu_server::{Device, Signals};

/// What every port offers.
const OFFERED: u64 = features::OFFLOADS
    | features::DATAGRAMS
    | features::MRG_RXBUF
    | features::STATUS
    | features::MAC
    | features::MTU;

/// Most regions of one guest's memory: the runner has two. With them a port has fifteen open files at most, so that
/// [`MAX_PORTS`](crate::MAX_PORTS) of them fit into the 1024 of a sealed process.
const MAX_REGIONS: usize = 4;

/// One port. The data thread counts, the others read.
#[derive(Debug)]
pub struct Shared {
    /// For messages: the domain's name and the NIC's.
    pub name: String,
    /// The address that leads here.
    pub mac: MacAddress,
    /// In bytes.
    pub mtu: u16,
    /// What its guest may send.
    pub filter: Filter,
    /// Frames to the guest.
    pub receive: Direction,
    /// Frames from the guest.
    pub transmit: Direction,
    link_up: AtomicBool,
}

/// One direction of a port.
#[derive(Debug)]
pub struct Direction {
    /// What has gone.
    pub counters: Counters,
    /// What may go.
    pub gate: RateLimit,
}

impl Shared {
    /// A port with this card.
    pub fn new(name: String, card: &NetCard) -> Self {
        let direction = |limit| Direction { counters: Counters::default(), gate: RateLimit::new(limit) };
        Self {
            name,
            mac: card.mac,
            mtu: card.mtu,
            filter: Filter::new(card.mac, &card.filter),
            receive: direction(card.limits.receive),
            transmit: direction(card.limits.transmit),
            link_up: AtomicBool::new(card.link_up),
        }
    }

    /// Whether its cable is plugged in.
    pub fn link_up(&self) -> bool {
        self.link_up.load(Ordering::Relaxed)
    }

    /// Plugs the cable in or pulls it. The data thread is told besides.
    pub fn set_link(&self, up: bool) {
        self.link_up.store(up, Ordering::Relaxed);
    }

    /// What has gone.
    pub fn statistics(&self) -> NicStatistics {
        let traffic = |direction: &Direction| {
            let mut sum = TrafficStatistics::default();
            direction.counters.add_to(&mut sum);
            sum
        };
        NicStatistics {
            link_up: self.link_up(),
            pairs: 1,
            promiscuous: true,
            receive: traffic(&self.receive),
            transmit: traffic(&self.transmit),
        }
    }
}

/// What the data thread is told of one port, besides its queues.
#[derive(Debug)]
pub enum PortCommand {
    /// The limits or the link have changed. Answered when no frame is on its way by the old ones.
    Look(SyncSender<()>),
}

/// The device behind a connection.
#[derive(Debug)]
pub struct Nic {
    /// The port.
    pub shared: Arc<Shared>,
    /// How its frontend's eventfds are signalled.
    pub signals: Signals,
}

impl Device for Nic {
    type Command = PortCommand;

    fn features(&self) -> u64 {
        OFFERED
    }

    fn signals(&self) -> Signals {
        self.signals.clone()
    }

    fn max_regions(&self) -> usize {
        MAX_REGIONS
    }

    /// `struct virtio_net_config` (virtio 1.3 §5.1.4): mac, status, max_virtqueue_pairs, mtu.
    fn config(&self) -> Vec<u8> {
        let mut space = Vec::with_capacity(12);
        space.extend(self.shared.mac.bytes());
        for word in [u16::from(self.shared.link_up()), 1, self.shared.mtu] {
            space.extend(word.to_le_bytes());
        }
        space
    }
}
