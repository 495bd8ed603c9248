//! A connection to the dom0 service.

use std::io;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use domus_api::{ApiError, api_socket, default_run_dir};
use zlink::tokio::unix;

pub use zlink::tokio::unix::Connection;

/// Connects to the service.
///
/// # Errors
/// That it does not run, and how to start it.
pub async fn connect(run_dir: Option<&Path>) -> anyhow::Result<Connection> {
    let path = api_socket(&run_dir.map_or_else(default_run_dir, Path::to_owned));
    match unix::connect(&path).await {
        Ok(connection) => Ok(connection),
        Err(zlink::Error::Io(error)) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => bail!(
                "the dom0 service does not run ({}): start the program dom0 as root, or use domus run",
                path.display()
            ),
            io::ErrorKind::PermissionDenied => {
                bail!("{} may not be used by you: use sudo, or join the group domus", path.display())
            }
            _ => Err(error).with_context(|| format!("cannot connect to {}", path.display())),
        },
        Err(error) => Err(anyhow!(error)).with_context(|| format!("cannot connect to {}", path.display())),
    }
}

/// The answer of a call, or the one line that says why there is none.
///
/// # Errors
/// That line.
pub fn answer<T>(result: zlink::Result<Result<T, ApiError>>) -> anyhow::Result<T> {
    match result {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(refused)) => Err(anyhow!("{}", refused.message())),
        Err(zlink::Error::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            bail!("the dom0 service has hung up: see whether it still runs")
        }
        Err(error) => Err(anyhow!(error).context("the dom0 service gave no answer")),
    }
}

/// A path as the API takes it.
///
/// # Errors
/// That it is no UTF-8.
pub fn utf8(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).context("the path of the config is no UTF-8: rename it")
}
