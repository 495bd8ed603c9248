//! What starting a domain's NICs would take.

use std::collections::BTreeMap;

use shared_abi::Role;

use crate::device::net::config::{Nic, NicLink};
use crate::device::net::nic::OpenNic;
use crate::device::plan::{Plan, PlannedDevice, PlannedProcess};

/// Writes down processes, devices, and what a switch means for secrets.
pub fn plan(nics: &[OpenNic], plan: &mut Plan) {
    let ids = |is: fn(&Nic) -> bool| -> Vec<String> {
        nics.iter().filter(|open| is(&open.nic)).map(|open| open.nic.id.to_string()).collect()
    };
    let own = ids(Nic::is_own);
    if !own.is_empty() {
        plan.processes.push(PlannedProcess::own(Role::Net.program(), own));
    }
    let user = ids(|nic| matches!(nic.link, NicLink::User(_)));
    if !user.is_empty() {
        let count = user.len();
        plan.processes.push(PlannedProcess { count, ..PlannedProcess::own("passt", user) });
    }
    let mut switches = BTreeMap::<_, Vec<String>>::new();
    for OpenNic { n, nic, .. } in nics {
        if let NicLink::Switch(switch) = &nic.link {
            switches.entry(switch.as_str()).or_default().push(nic.id.to_string());
            plan.notes.push(format!(
                "nets[{n}].switch: the process of the switch \"{switch}\" can read and write all memory of this domain \
                 and of every other domain on it: put only domains there that may know each other's secrets"
            ));
        }
    }
    let switches = switches.into_values().map(|serves| {
        let own = PlannedProcess::own(Role::Switch.program(), serves);
        PlannedProcess { own: false, ..own }
    });
    plan.processes.extend(switches);
    plan.devices.extend(nics.iter().map(device));
}

fn device(OpenNic { spec, nic, .. }: &OpenNic) -> PlannedDevice {
    let own = Role::Net.program().to_owned();
    let (backend, wire) = match &nic.link {
        // The tap is called by the domain's number, which it gets when it is made.
        NicLink::Bridge(bridge) => (own, format!("a new tap on the bridge {bridge}")),
        NicLink::Tap(tap) => (own, format!("the tap {tap}")),
        NicLink::Macvtap(below) => (own, format!("a new macvtap on {below}")),
        NicLink::Network(network) => (own, format!("a new tap on the network {network}")),
        NicLink::Switch(switch) => (Role::Switch.program().into(), format!("the switch {switch}")),
        NicLink::VhostUser(socket) => (socket.display().to_string(), "a NIC of others'".into()),
        NicLink::User(ports) => (own, format!("passt with {} port(s) to the guest", ports.len())),
    };
    let cable = if nic.up { "" } else { ", its cable pulled" };
    let is = format!("{wire}, {}, MTU {}{cable}", nic.mac, nic.mtu);
    PlannedDevice::new(spec, "net".into(), backend, is, "stall".into())
}
