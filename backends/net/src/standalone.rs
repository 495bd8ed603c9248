//! A NIC for a frontend that Domus did not start, by vhost-user's backend program conventions.

use anyhow::Context;
use domus_startup::sandbox::{self, COMMON};
use shared_abi::MacAddress;
use shared_abi::control::NicLimits;
use shared_abi::limits::MAX_QUEUE_PAIRS;
use vu_server::server;
use vu_server::standalone::{Common, Frontend};

use crate::nic::Card;
use crate::prepared::{Cable, NicSpec, Prepared};
use crate::syscalls::CALLS;
use crate::tap::Tap;

/// The command line of a stand-alone NIC.
#[derive(Debug, clap::Args)]
pub struct Standalone {
    #[command(flatten)]
    common: Common,
    /// The tap: attached to if it is there, made if not (needs CAP_NET_ADMIN).
    #[arg(long, value_name = "NAME")]
    tap: Option<String>,
    /// The MAC address for frontends that ask; most, QEMU among them, decide it themselves.
    #[arg(long, value_name = "MAC")]
    mac: Option<MacAddress>,
    /// The MTU for frontends that ask.
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u16>,
    /// The number of queue pairs; the frontend has the control queue.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=MAX_QUEUE_PAIRS.into()))]
    queues: u16,
}

impl Standalone {
    /// Serves one frontend after the other, or the one at the descriptor given.
    ///
    /// # Errors
    /// The tap, the socket or the sandbox; the text is for the operator.
    pub fn run(self) -> anyhow::Result<()> {
        if self.common.print_capabilities {
            println!("{{\"type\":\"net\",\"features\":[]}}");
            return Ok(());
        }
        let name = self.tap.context("no tap to serve: give --tap NAME")?;
        let card =
            Card { mac: self.mac, mtu: self.mtu, pairs: self.queues, controlled: false, any_mac: true };
        let frontend = self.common.open()?;
        let queues = (0..self.queues).map(|_| Tap::open(&name, self.queues > 1)).collect::<Result<_, _>>()?;
        let cable = Cable::Tap { queues, steering: None };
        let limits = NicLimits::default();
        let spec = NicSpec { name: &name, card, filter: None, limits, link: true, cable, state: None };
        let prepared = Prepared::new(spec).context("cannot set up the tap")?;
        let nic = prepared.nic();
        self.common.enter_sandbox()?;
        let server = prepared.start(|| {
            let name = name.clone();
            Box::new(move |error| {
                domus_startup::say(format_args!("domus-net: tap {name} cannot be read any more: {error}"));
                std::process::exit(1);
            })
        })?;
        let server = server.with_any_memory();
        sandbox::seal(&[COMMON, server::CALLS, CALLS].concat())?;
        nic.recall().context("cannot set up the tap")?;
        match frontend {
            Frontend::Listener(listener) => server.serve_all(&listener).context("cannot accept a frontend"),
            Frontend::Connected(stream) => Ok(server.serve(stream)?),
        }
    }
}
