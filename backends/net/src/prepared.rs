//! The threads of a NIC: a receiver and a transmitter for each queue pair, and one for the control queue.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use domus_startup::threads;
use shared_abi::control::NicLimits;
use vu_server::{Port, Server};

use crate::control_queue::ControlQueue;
use crate::device::NetDevice;
use crate::filter::Filter;
use crate::link_state::LinkState;
use crate::nic::{Card, Far, Nic};
use crate::on_stream::{Reader, Writer};
use crate::rx::{Lost, Receive};
use crate::steering::Steering;
use crate::tap::Tap;
use crate::tx::Transmit;
use crate::wire::OnTap;
use crate::worker::{self, Desk};
use crate::worker_command::NicCommand;

/// The number of the control queue for drivers that know of one queue pair only (virtio 1.3 §5.1.2).
const LONE_CONTROL: usize = 2;

/// What is at the other end of a NIC's cable.
#[derive(Debug)]
pub enum Cable {
    /// A tap: one queue for each queue pair, and the table by which it spreads frames.
    Tap {
        /// The queues.
        queues: Vec<Tap>,
        /// The table.
        steering: Option<Steering>,
    },
    /// A stream, connected or not.
    Stream(Option<UnixStream>),
}

/// A NIC with its service.
#[derive(Debug)]
pub struct NicSpec<'a> {
    /// Its name, for messages.
    pub name: &'a str,
    /// What its driver is told, and may do.
    pub card: Card,
    /// What it may send; everything without.
    pub filter: Option<Filter>,
    /// How much it may carry.
    pub limits: NicLimits,
    /// Its cable is plugged in.
    pub link: bool,
    /// What is at the cable's other end.
    pub cable: Cable,
    /// Where what the driver has set is kept.
    pub state: Option<OwnedFd>,
}

/// The wire of one queue pair, as its threads are given it.
#[derive(Debug, Clone)]
enum End {
    Tap {
        queue: Arc<Tap>,
        /// Frames come on it only while its receive ring runs.
        follows: bool,
    },
    Stream(Option<Arc<UnixStream>>),
}

/// A NIC whose threads are still to be started.
#[derive(Debug)]
pub struct Prepared {
    nic: Arc<Nic>,
    filter: Option<Filter>,
    mtu: u16,
    ends: Vec<End>,
    ports: Vec<Port<NicCommand>>,
    desks: Vec<Desk>,
}

impl Prepared {
    /// Makes what the threads need.
    ///
    /// # Errors
    /// The tap or the socket cannot be set up, or there is no descriptor left.
    pub fn new(spec: NicSpec<'_>) -> io::Result<Self> {
        let NicSpec { name, card, filter, limits, link, cable, state } = spec;
        let (far, ends) = ends(cable, &card)?;
        let connected = !matches!(ends[..], [End::Stream(None)]);
        let shared = Arc::new(LinkState::new(link, connected, &limits));
        let queues = ends.len() * 2 + usize::from(card.controlled);
        let (ports, commands): (Vec<_>, Vec<_>) = (0..queues)
            .map(|_| vu_server::worker::commands())
            .collect::<io::Result<Vec<_>>>()?
            .into_iter()
            .unzip();
        let mut desks = commands.into_iter().map(Desk::new).collect::<io::Result<Vec<_>>>()?;
        if card.controlled
            && queues > LONE_CONTROL + 1
            && let Some(control) = ports.last()
        {
            desks[LONE_CONTROL].pass_control_on(control.clone());
        }
        let workers = ports[..ends.len() * 2].to_vec();
        let nic = Arc::new(Nic::new(name, card, far, shared, workers, state));
        Ok(Self { nic, filter, mtu: card.mtu.unwrap_or(1500), ends, ports, desks })
    }

    /// The NIC, as dom0 asks for it.
    pub fn nic(&self) -> Arc<Nic> {
        self.nic.clone()
    }

    /// Whether its cable leads to a stream, which may be connected again.
    pub fn is_stream(&self) -> bool {
        matches!(self.ends[..], [End::Stream(_)])
    }

    /// Starts one thread for each queue and returns the server for the connection. Each receiver gets a callback from
    /// `lost` and calls it when its wire cannot be read any more.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start(self, lost: impl Fn() -> Lost) -> io::Result<Server<NetDevice>> {
        let nic = self.nic;
        let mut desks = self.desks.into_iter();
        // In the order of the queues' numbers: two for each pair, then the control queue.
        for ((pair, end), counters) in (0..).zip(self.ends).zip(nic.counters().chunks(2)) {
            let ([receive, transmit], Some(receiving), Some(transmitting)) =
                (counters, desks.next(), desks.next())
            else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            let (shared, counters, lost) = (nic.shared().clone(), receive.clone(), lost());
            let (mtu, wire) = (self.mtu, end.clone());
            threads::start(thread("rx", pair, nic.name()), move || match wire {
                End::Tap { queue, follows } => {
                    let wire = OnTap::new(queue, follows);
                    worker::run(Receive::new(shared, counters, wire, mtu, lost), receiving);
                }
                End::Stream(socket) => {
                    let wire = Reader::new(socket);
                    worker::run(Receive::new(shared, counters, wire, mtu, lost), receiving);
                }
            })?;
            let (shared, counters, filter) = (nic.shared().clone(), transmit.clone(), self.filter.clone());
            threads::start(thread("tx", pair, nic.name()), move || match end {
                End::Tap { queue, .. } => {
                    let wire = OnTap::new(queue, false);
                    worker::run(Transmit::new(shared, counters, filter, wire), transmitting);
                }
                End::Stream(socket) => {
                    worker::run(Transmit::new(shared, counters, filter, Writer::new(socket)), transmitting);
                }
            })?;
        }
        if let Some(desk) = desks.next() {
            let nic = nic.clone();
            threads::start(format!("ctl {}", nic.name()), move || worker::run(ControlQueue::new(nic), desk))?;
        }
        let name = nic.name().clone();
        Ok(Server::new(&name, NetDevice::new(nic), self.ports))
    }
}

/// A thread's name, of which the kernel keeps 15 bytes.
fn thread(what: &str, pair: usize, nic: &str) -> String {
    format!("{what}{pair} {nic}")
}

/// What can be set of a cable's other end, and the wire of each pair.
fn ends(cable: Cable, card: &Card) -> io::Result<(Far, Vec<End>)> {
    match cable {
        Cable::Tap { queues, steering } => {
            let queues: Vec<_> = queues.into_iter().map(Arc::new).collect();
            let mut ends = Vec::with_capacity(queues.len());
            for (pair, queue) in queues.iter().enumerate() {
                let follows = !card.controlled && pair > 0;
                if follows {
                    queue.attach(false)?;
                }
                ends.push(End::Tap { queue: queue.clone(), follows });
            }
            Ok((Far::Tap { queues, steering }, ends))
        }
        Cable::Stream(socket) => {
            let socket = socket.map(|socket| socket.set_nonblocking(true).map(|()| Arc::new(socket)));
            Ok((Far::Stream, vec![End::Stream(socket.transpose()?)]))
        }
    }
}
