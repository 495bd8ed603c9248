//! Virtio discovery: what is on the bus, and whether each virtio function has all that §4.1.4 asks for.

use crate::body::virtio::{self, VERSION_1, Virtio, common};
use crate::body::{Outcome, ensure, pci, say, sys};

/// Lists the bus; checks every virtio function's structures and reset state.
pub fn discovery() -> Outcome {
    let mut count = 0;
    for device in pci::devices() {
        say!(
            "value pci devfn={:#x} vendor={:#06x} device={:#06x} class={:#08x}",
            device.devfn,
            device.vendor(),
            device.id(),
            device.read32(8) >> 8
        );
        if let Some(ecam) = device.ecam() {
            let seen = sys::read32(ecam);
            ensure!(
                seen == device.read32(0),
                "ECAM at {ecam:#x} says {seen:#x}, CF8/CFC {:#x}",
                device.read32(0)
            );
        }
    }
    for function in virtio::functions(0) {
        let v = Virtio::from_pci(function)?;
        v.reset()?;
        let offered = v.offered();
        say!(
            "value pci virtio={} features={offered:#x} queues={} msix={} common={:#x} config={}",
            function.id() - 0x1040,
            v.queues(),
            v.msix.count,
            v.common.at,
            v.config.len
        );
        ensure!(offered & VERSION_1 != 0, "VERSION_1 is not offered");
        ensure!(v.queues() >= 1, "there are no queues");
        for queue in 0..v.queues() {
            v.select(queue);
            let size = sys::read16(v.common.at + common::QUEUE_SIZE);
            ensure!(size > 0 && size.is_power_of_two(), "queue {queue} has a size of {size}");
            ensure!(
                sys::read16(v.common.at + common::QUEUE_ENABLE) == 0,
                "queue {queue} is enabled after a reset"
            );
            let off = u64::from(sys::read16(v.common.at + common::QUEUE_NOTIFY_OFF));
            ensure!(
                off * v.notify_step + 2 <= v.notify.len,
                "queue {queue} is notified outside its structure"
            );
        }
        v.select(v.queues());
        let beyond = sys::read16(v.common.at + common::QUEUE_SIZE);
        ensure!(beyond == 0, "a queue that is not there has a size of {beyond}");
        count += 1;
    }
    ensure!(count > 0, "there is no virtio device");
    Ok(())
}
