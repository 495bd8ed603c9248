//! `domus console`: one domain's console through reboots, until the user leaves or the domain is gone.

use std::path::Path;
use std::time::Duration;

use dom0::api::Dom0Client;
use shared_abi::console::Mode;

use crate::attach::{End, Keys, attach};
use crate::client::{Connection, answer};
use crate::terminal::Raw;

/// How long the console of a domain that runs may be away.
const AWAY: Duration = Duration::from_secs(30);

/// Follows the console of `name`.
///
/// # Errors
/// That there is no such domain, or that its console cannot be reached.
pub async fn follow(connection: &mut Connection, name: &str, mode: Mode) -> anyhow::Result<()> {
    let mut console = answer(connection.console(name).await)?;
    let raw = Raw::enter()?;
    let mut keys = Keys::read(raw.is_some());
    loop {
        if attach(Path::new(&console.path), mode, &mut keys).await? == End::Left {
            drop(raw);
            eprintln!();
            return Ok(());
        }
        match next(connection, name, console.id).await {
            Some(again) => console = again,
            None => return Ok(()),
        }
    }
}

/// The domain's next console, if it starts again: however long that takes.
async fn next(connection: &mut Connection, name: &str, ended: u32) -> Option<dom0::api::Console> {
    let mut running = tokio::time::Instant::now();
    loop {
        let domain = answer(connection.get(name).await).ok()?.domain;
        match domain.state.as_str() {
            "running" | "stopping" | "paused" if domain.id != ended => {
                return answer(connection.console(name).await).ok();
            }
            // Its end is not known yet, or its console's process has died.
            "running" | "stopping" | "paused" if running.elapsed() > AWAY => return None,
            "running" | "stopping" | "paused" => {}
            "building" | "dying" => running = tokio::time::Instant::now(),
            _ => return None,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
