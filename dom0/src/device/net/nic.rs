//! A NIC: what is written down of it, what is open of it, and what whoever serves it is told.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use domus_startup::fds::Outgoing;
use serde::{Deserialize, Serialize};
use shared_abi::control::{DeviceConfig, DeviceFeatures, DeviceSpec, NetCard, NicFilter, NicLimits};
use shared_abi::limits::NIC_STATE_LEN;

use crate::device::Owner;
use crate::device::net::attach::Attachment;
use crate::device::net::cable::Cable;
use crate::device::net::config::{Nic, NicLink};
use crate::device::slots::SlotMap;
use crate::device::spec::{NET, NET_CONFIG, QUEUE_SIZE, usual_class};
use crate::host::monitor::Watch;
use crate::host::proc::ProcessId;
use crate::host::sockets;
use crate::network::managed::Addresses;

/// A network backend that is no VMM's own has no idea of a NIC's address, MTU and link (bits 5, 3 and 16, virtio 1.3
/// §5.1.3): vhost-user leaves them to the frontend. What only a control queue can do is left out, since such a backend
/// serves none: CTRL_GUEST_OFFLOADS (2), CTRL_VQ to CTRL_MAC_ADDR (17 to 23, with GUEST_ANNOUNCE and MQ), and those
/// from bit 50 on: DEVICE_STATS, VQ_NOTF_COAL, NOTF_COAL, HASH_REPORT, RSS, RSC_EXT, STANDBY and SPEED_DUPLEX.
const FRONTEND_FEATURES: DeviceFeatures =
    DeviceFeatures { own: 1 << 3 | 1 << 5 | 1 << 16, withheld: 1 << 2 | 0x7f << 17 | 0xfffc << 48 };

/// `struct virtio_net_config` up to the MTU, of a NIC whose backend leaves it to the frontend.
fn frontend_config(nic: &Nic) -> Vec<u8> {
    const LINK_UP: u16 = 1;
    const PAIRS: u16 = 1;
    let words = [LINK_UP, PAIRS, nic.mtu].map(u16::to_le_bytes);
    nic.mac.bytes().into_iter().chain(words.into_iter().flatten()).collect()
}

/// What is written down of a NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicRecord {
    /// Its place in the config's list, which is in the names of its interface and its memory.
    pub n: usize,
    /// What the guest sees.
    pub spec: DeviceSpec,
    /// What the machine was built with.
    pub nic: Nic,
    /// Its queue pairs.
    pub pairs: u16,
    /// What it may do.
    pub limits: NicLimits,
    /// Its cable is plugged in.
    pub up: bool,
    /// Its passt.
    pub passt: Option<ProcessId>,
    /// Its filter says whether the guest may send tags and be a router. Before there was a rule for that a guest did as
    /// it liked, and does until its domain's next start.
    #[serde(default)]
    pub guarded: bool,
}

impl NicRecord {
    /// Of NIC `n` of a config, before it is opened.
    pub fn first(n: usize, nic: &Nic, slots: &mut SlotMap) -> Self {
        let (config, features) = match &nic.link {
            NicLink::VhostUser(_) => (DeviceConfig::Given(frontend_config(nic)), FRONTEND_FEATURES),
            _ => (DeviceConfig::FromBackend(NET_CONFIG), DeviceFeatures::default()),
        };
        let spec = DeviceSpec {
            id: nic.id.clone(),
            slot: slots.take(),
            virtio_type: NET,
            pci_class: usual_class(NET),
            queues: nic.virtqueues(nic.pairs),
            queue_size: QUEUE_SIZE,
            config,
            features,
        };
        let nic = nic.clone();
        Self { n, spec, pairs: nic.pairs, limits: nic.limits, up: nic.up, passt: None, guarded: true, nic }
    }
}

/// A NIC, and what is open of it.
#[derive(Debug)]
pub struct OpenNic {
    /// Its place in the config's list.
    pub n: usize,
    /// What the guest sees.
    pub spec: DeviceSpec,
    /// What the machine was built with.
    pub nic: Nic,
    /// What is open of its cable.
    pub wire: Attachment,
    /// Its queue pairs.
    pub pairs: u16,
    /// What it may do.
    pub limits: NicLimits,
    /// Its cable is plugged in.
    pub up: bool,
    /// Its wire was opened, by this dom0 or one before it: it has as many queue pairs as it has.
    pub was_opened: bool,
    /// The passt that a dom0 before this one has started.
    pub inherited: Option<ProcessId>,
    /// It may be told which addresses it has: its filter was made when there was a rule for that.
    pub guarded: bool,
    /// What its network has given it.
    pub pinned: Option<Addresses>,
    /// What its wire is made of, and who watches that.
    pub cable: Option<(Cable, Watch)>,
}

impl OpenNic {
    /// A NIC that is not open, as it was written down.
    pub fn new(record: &NicRecord) -> Self {
        let mut nic = record.nic.clone();
        if !record.guarded {
            nic.filter.tags = true;
            nic.filter.router = nic.filter.addresses.is_none();
        }
        Self {
            n: record.n,
            spec: record.spec.clone(),
            nic,
            wire: Attachment::closed(&record.nic.link),
            pairs: record.pairs,
            limits: record.limits,
            up: record.up,
            was_opened: false,
            inherited: record.passt,
            guarded: record.guarded,
            pinned: None,
            cable: None,
        }
    }

    /// For a dom0 that comes later.
    pub fn record(&self) -> NicRecord {
        NicRecord {
            n: self.n,
            spec: self.spec.clone(),
            nic: self.nic.clone(),
            pairs: self.pairs,
            limits: self.limits,
            up: self.up,
            passt: match &self.wire {
                Attachment::User { passt: Some(passt), .. } => ProcessId::of(passt.pid()),
                _ => None,
            },
            guarded: self.guarded,
        }
    }

    /// What its guest may send.
    fn filter(&self) -> NicFilter {
        let filter = self.nic.filter.clone();
        match &self.pinned {
            None => filter,
            Some(Addresses { own, except }) => {
                NicFilter { addresses: Some(own.clone()), except: except.clone(), ..filter }
            }
        }
    }

    /// What whoever serves it is told, and the runner's end of its socket.
    ///
    /// # Errors
    /// No descriptors left, or the domain's directory is gone.
    pub fn nic_message(&self, owner: &Owner, fds: &mut Outgoing) -> io::Result<(NetCard, OwnedFd)> {
        let (ours, theirs) = sockets::pair()?;
        let card = NetCard {
            id: self.nic.id.clone(),
            mac: self.nic.mac,
            mtu: self.nic.mtu,
            pairs: self.pairs,
            filter: self.filter(),
            limits: self.limits,
            link_up: self.up,
            state: fds.add(driver_state(&owner.directory, self.n)?),
            socket: fds.add(theirs),
        };
        Ok((card, ours))
    }
}

/// The memory of NIC `n` in the domain's run directory: what its driver has set, for as long as the domain runs. Made
/// where it is missing.
fn driver_state(directory: &Path, n: usize) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(directory.join(format!("nic{n}.state")))?;
    file.set_len(NIC_STATE_LEN)?;
    Ok(file)
}
