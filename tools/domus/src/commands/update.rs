//! A running domain's name and its next config: `rename` and `config-update`.

use std::path::{Path, PathBuf};

use clap::Args;
use domus_api::{Dom0Client, read_config};

use crate::client::{answer, connect, utf8};

/// The command line of `rename`.
#[derive(Debug, Args)]
pub struct RenameArgs {
    /// The domain's name or ID
    name: String,
    /// Its new name
    to: String,
}

/// The command line of `config-update`.
#[derive(Debug, Args)]
pub struct ConfigUpdateArgs {
    /// The domain's name or ID
    name: String,
    /// The config
    file: PathBuf,
}

/// `domus rename`.
pub async fn rename(dir: Option<&Path>, args: RenameArgs) -> anyhow::Result<()> {
    answer(connect(dir).await?.rename(&args.name, &args.to).await)
}

/// `domus config-update`.
pub async fn config_update(dir: Option<&Path>, args: ConfigUpdateArgs) -> anyhow::Result<()> {
    let ConfigUpdateArgs { name, file } = args;
    let (text, directory) = read_config(&file)?;
    let mut connection = connect(dir).await?;
    answer(connection.config_update(&name, &text, &utf8(&file)?, &utf8(&directory)?).await)
}
