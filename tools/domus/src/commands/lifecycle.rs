//! A domain's lifecycle: `pause`, `unpause`, `shutdown`, `reboot` and `destroy`.

use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use domus_api::{Dom0Client, Ended};
use tokio::time::{sleep, timeout};

use crate::client::{Connection, answer, connect};
use crate::selection::{Selection, for_each};

/// Whether to wait for a shutdown or a reboot, and how long.
#[derive(Debug, Args)]
pub struct Patience {
    /// Wait until it has
    #[arg(short, long)]
    wait: bool,
    /// How long to wait at most
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    timeout: Option<u64>,
}

/// The command line of `shutdown`.
#[derive(Debug, Args)]
pub struct ShutdownArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    patience: Patience,
    /// Destroy what has not switched itself off in time
    #[arg(short = 'F', long, requires = "timeout")]
    force: bool,
}

/// The command line of `reboot`.
#[derive(Debug, Args)]
pub struct RebootArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    patience: Patience,
}

/// `domus pause`.
pub async fn pause(dir: Option<&Path>, selection: &Selection) -> anyhow::Result<ExitCode> {
    for_each(dir, selection, "be paused", async |at, name| answer(at.pause(name).await)).await
}

/// `domus unpause`.
pub async fn unpause(dir: Option<&Path>, selection: &Selection) -> anyhow::Result<ExitCode> {
    for_each(dir, selection, "be unpaused", async |at, name| answer(at.unpause(name).await)).await
}

/// `domus destroy`.
pub async fn destroy(dir: Option<&Path>, selection: &Selection) -> anyhow::Result<ExitCode> {
    for_each(dir, selection, "be destroyed", async |at, name| answer(at.destroy(name).await)).await
}

/// `domus shutdown`.
pub async fn shutdown(dir: Option<&Path>, args: &ShutdownArgs) -> anyhow::Result<ExitCode> {
    let ShutdownArgs { selection, patience, force } = args;
    for_each(dir, selection, "be shut down", async |at, name| {
        if !patience.wait {
            return answer(at.shutdown(name).await);
        }
        let ended = {
            let asked = async |at: &mut Connection| answer(at.shutdown(name).await);
            patience.spend(asked_and_ended(dir, at, name, asked)).await
        };
        match ended {
            Some(ended) => whole(name, ended?).map(drop),
            // The other connection may still wait for its answer.
            None if *force => answer(connect(dir).await?.destroy(name).await),
            None => bail!(
                "{name}: has not switched itself off in {} s: wait longer, or domus destroy {name}",
                patience.seconds()
            ),
        }
    })
    .await
}

/// `domus reboot`.
pub async fn reboot(dir: Option<&Path>, args: &RebootArgs) -> anyhow::Result<ExitCode> {
    let RebootArgs { selection, patience } = args;
    for_each(dir, selection, "be rebooted", async |at, name| {
        if !patience.wait {
            return answer(at.reboot(name).await);
        }
        let back = async {
            let asked = async |at: &mut Connection| answer(at.reboot(name).await);
            if whole(name, asked_and_ended(dir, at, name, asked).await?)?.restarted_as.is_none() {
                bail!("{name}: has ended, and was not started again");
            }
            while answer(at.get(name).await)?.domain.state == "building" {
                sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        match patience.spend(back).await {
            Some(back) => back,
            None => bail!(
                "{name}: has not rebooted in {} s: wait longer, or domus destroy {name}",
                patience.seconds()
            ),
        }
    })
    .await
}

impl Patience {
    fn seconds(&self) -> u64 {
        self.timeout.unwrap_or_default()
    }

    /// The result, if it comes in time.
    async fn spend<T>(&self, what: impl Future<Output = T>) -> Option<T> {
        match self.timeout {
            None => Some(what.await),
            Some(seconds) => timeout(Duration::from_secs(seconds), what).await.ok(),
        }
    }
}

/// Asks something of a domain, and waits for its machine's end.
async fn asked_and_ended(
    dir: Option<&Path>,
    connection: &mut Connection,
    name: &str,
    ask: impl AsyncFn(&mut Connection) -> anyhow::Result<()>,
) -> anyhow::Result<Ended> {
    // Waiting begins before the guest is asked, on a connection of its own: a fast guest cannot slip through.
    let mut other = connect(dir).await?;
    let mut waiting = pin!(other.wait(name));
    let ended = tokio::select! {
        biased;
        ended = &mut waiting => ended,
        asked = ask(connection) => {
            asked?;
            waiting.await
        }
    };
    answer(ended)
}

/// The machine's end, if it was no crash.
fn whole(name: &str, ended: Ended) -> anyhow::Result<Ended> {
    if ended.crashed {
        bail!("{name} {}", ended.ended.unwrap_or_else(|| "crashed".into()));
    }
    Ok(ended)
}
