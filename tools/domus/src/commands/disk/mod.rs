//! `domus disk`: disk images without a domain.
//!
//! What is in a qcow2 file may have been written by a guest's backend, so this process never parses one: a child that
//! has closed a sandbox around itself does ([`sealed`]), with the descriptors it needs and nothing else. Internal
//! snapshots are the exception: `qemu-img` works on them ([`qemu`]). The format of an image that is there is what the
//! command line says, else what the image's own bytes tell, and never what its name does. Refused: an image that a
//! domain or another program has locked, one of a format that Domus does not read unless it is said to be raw, and a
//! qcow2 image that is shorter than its tables say (`domus_block::qcow2::look`). Promised: a file that is made is there
//! when it is complete, or not at all.

mod files;
mod qemu;
pub mod sealed;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use dom0::host::locks::Lock;
use serde_json::json;
use shared_abi::control::ImageFormat;
use shared_abi::size::DiskSize;

use crate::output::print;
use crate::shrink::would_lose;
use files::{Image, NewFile, Said};
use sealed::{Job, Outcome};

/// The command line of `disk`.
#[derive(Debug, Args)]
pub struct DiskArgs {
    /// What to do
    #[command(subcommand)]
    command: Command,
}

/// A command on images.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an image; everything in it reads as zeros, or as its backing image
    Create(Create),
    /// Say what an image is
    Info {
        /// The image
        file: PathBuf,
        #[command(flatten)]
        how: How,
    },
    /// Say whether all of an image is there that its tables refer to; exit status 1 if it is not
    Check {
        /// The image
        file: PathBuf,
        #[command(flatten)]
        how: How,
    },
    /// Copy an image into a new one, which may have another format and has no backing image
    Convert(Convert),
    /// Give an image another size
    Resize {
        /// The image
        file: PathBuf,
        /// Its new size, such as 20G
        size: DiskSize,
        /// Let it become shorter: what is behind its new end is lost
        #[arg(long)]
        shrink: bool,
        #[command(flatten)]
        how: How,
    },
    /// Make an overlay that takes an image's writes from now on, or work on snapshots inside a qcow2 image
    ///
    /// The snapshots inside (--list, --create, --apply, --delete) are qemu-img's work: it parses the image with the
    /// rights of whoever runs this command, in no sandbox. Everything else parses images in a sandbox.
    Snapshot(Snapshot),
}

/// How an image is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The disk's bytes as they are
    Raw,
    /// QEMU's copy-on-write format
    Qcow2,
}

impl From<Format> for ImageFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::Qcow2 => Self::Qcow2,
        }
    }
}

/// What the commands take that work on an image that is there.
#[derive(Debug, Args)]
pub struct How {
    /// The image's format [default: what its own bytes tell]
    #[arg(long)]
    format: Option<Format>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl How {
    fn said(&self) -> Said {
        said(self.format, "--format raw")
    }
}

fn said(format: Option<Format>, raw: &'static str) -> Said {
    Said { format: format.map(Into::into), raw }
}

/// What the commands take that make an image.
#[derive(Debug, Args)]
pub struct Made {
    /// The new image's format [default: qcow2 if its name ends in .qcow2, else raw]
    #[arg(long)]
    format: Option<Format>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// `disk create`.
#[derive(Debug, Args)]
pub struct Create {
    /// The new image
    file: PathBuf,
    /// Its size, such as 20G; with a backing image that one's size if left out
    #[arg(required_unless_present = "backing")]
    size: Option<DiskSize>,
    /// What it shows where nothing was written
    #[arg(long, value_name = "FILE")]
    backing: Option<PathBuf>,
    /// The format of the backing image [default: what its own bytes tell]
    #[arg(long, value_name = "FORMAT", requires = "backing")]
    backing_format: Option<Format>,
    #[command(flatten)]
    how: Made,
}

/// `disk convert`.
#[derive(Debug, Args)]
pub struct Convert {
    /// The image to copy
    from: PathBuf,
    /// The new image
    to: PathBuf,
    /// The format of the image to copy [default: what its own bytes tell]
    #[arg(long, value_name = "FORMAT")]
    from_format: Option<Format>,
    /// An image that the one to copy may refer to; once for each
    #[arg(long, value_name = "FILE[:FORMAT]")]
    backing: Vec<String>,
    #[command(flatten)]
    how: Made,
}

/// `disk snapshot`.
#[derive(Debug, Args)]
pub struct Snapshot {
    /// The image
    file: PathBuf,
    /// The new overlay, a qcow2 image
    #[arg(required_unless_present = "inside", conflicts_with = "inside")]
    overlay: Option<PathBuf>,
    #[command(flatten)]
    inside: Inside,
    #[command(flatten)]
    how: How,
}

/// Snapshots inside an image.
#[derive(Debug, Args)]
#[group(id = "inside", multiple = false)]
pub struct Inside {
    /// List the snapshots inside a qcow2 image
    #[arg(long)]
    list: bool,
    /// Take one inside
    #[arg(long, value_name = "NAME")]
    create: Option<String>,
    /// Go back to one
    #[arg(long, value_name = "NAME")]
    apply: Option<String>,
    /// Delete one
    #[arg(long, value_name = "NAME")]
    delete: Option<String>,
}

/// Does what the command line says.
///
/// # Errors
/// One line for the user.
pub fn run(args: DiskArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Create(create) => self::create(create),
        Command::Info { file, how } => info(&file, &how),
        Command::Check { file, how } => check(&file, &how),
        Command::Convert(convert) => self::convert(convert),
        Command::Resize { file, size, shrink, how } => resize(&file, size.0, shrink, &how),
        Command::Snapshot(snapshot) => self::snapshot(snapshot),
    }
}

/// The format of a new image: as somebody has said, or as its name has it.
fn format(path: &Path, said: Option<Format>) -> ImageFormat {
    let named = path.extension().is_some_and(|ending| ending == "qcow2");
    said.map_or(if named { ImageFormat::Qcow2 } else { ImageFormat::Raw }, Into::into)
}

fn create(Create { file, size, backing, backing_format, how }: Create) -> anyhow::Result<()> {
    let format = format(&file, how.format);
    let Some(backing) = backing else {
        let bytes = size.context("an image without a backing image needs a size")?.0;
        make(&file, format, bytes, None)?;
        return tell(&file, bytes, how.json);
    };
    if format == ImageFormat::Raw {
        bail!("{} cannot have a backing image: say --format qcow2", file.display());
    }
    let bytes = over(&file, &backing, said(backing_format, "--backing-format raw"), size)?;
    tell(&file, bytes, how.json)
}

/// Makes an overlay; returns its size.
fn over(file: &Path, backing: &Path, format: Said, size: Option<DiskSize>) -> anyhow::Result<u64> {
    let image = Image::open(backing, format, Lock::Read)?;
    let bytes = match size {
        Some(DiskSize(bytes)) => bytes,
        None => image.bytes()?,
    };
    // Absolute, so that it means the same wherever the overlay is.
    let name =
        image.path.to_str().context("the path of the backing image is no UTF-8: rename it")?.to_owned();
    make(file, ImageFormat::Qcow2, bytes, Some((name, image.format)))?;
    Ok(bytes)
}

fn make(
    file: &Path,
    format: ImageFormat,
    bytes: u64,
    backing: Option<(String, ImageFormat)>,
) -> anyhow::Result<()> {
    let new = NewFile::new(file)?;
    match format {
        ImageFormat::Raw => new.set_len(bytes)?,
        ImageFormat::Qcow2 => {
            sealed::run(|fds| Job::Create { image: new.pass(fds), bytes, backing })?;
        }
    }
    new.keep()
}

fn info(file: &Path, how: &How) -> anyhow::Result<()> {
    let (image, user) = Image::peek(file, how.said())?;
    let allocated = image.allocated()?;
    let (bytes, facts) = match image.format {
        ImageFormat::Raw => (image.bytes()?, None),
        ImageFormat::Qcow2 => {
            let facts = sealed::look(&image)?;
            (facts.bytes, Some(facts))
        }
    };
    if how.json {
        let facts = facts.map(|facts| json!(facts));
        return print(&json!({
            "path": image.path, "format": image.format, "bytes": bytes, "allocated": allocated, "in_use_by": user,
            "qcow2": facts,
        }).to_string());
    }
    let name = match image.format {
        ImageFormat::Raw => "raw",
        ImageFormat::Qcow2 => "qcow2",
    };
    print(&format!("{}: {name}, {}, {} on the host", file.display(), DiskSize(bytes), DiskSize(allocated)))?;
    if let Some(facts) = facts {
        print(&format!("version {}, clusters of {}", facts.version, DiskSize(facts.cluster.into())))?;
        if let Some(backing) = facts.backing {
            print(&format!(
                "backed by {backing} ({})",
                facts.backing_format.as_deref().unwrap_or("no format said")
            ))?;
        }
        if facts.snapshots > 0 {
            print(&format!("{} snapshots inside", facts.snapshots))?;
        }
    }
    user.map_or(Ok(()), |user| print(&format!("in use by {user}")))
}

/// A raw image has no tables that could refer to anything.
fn check(file: &Path, how: &How) -> anyhow::Result<()> {
    let (image, _) = Image::peek(file, how.said())?;
    let bytes = image.bytes()?;
    if how.json {
        return print(&json!({ "path": image.path, "format": image.format, "bytes": bytes }).to_string());
    }
    print(&match image.format {
        ImageFormat::Raw => format!("{}: raw, it has no tables", file.display()),
        ImageFormat::Qcow2 => format!("{}: qcow2, all that its tables refer to is there", file.display()),
    })
}

fn convert(Convert { from, to, from_format, backing, how }: Convert) -> anyhow::Result<()> {
    let source = Image::open(&from, said(from_format, "--from-format raw"), Lock::Read)?;
    let backing = backing.iter().map(|text| listed(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let new = NewFile::new(&to)?;
    let format = format(&to, how.format);
    let outcome = sealed::run(|fds| Job::Convert {
        from: source.pass(fds),
        backing: backing.iter().map(|image| image.pass(fds)).collect(),
        to: new.pass(fds),
        format,
    })?;
    let Outcome::Size(bytes) = outcome else { bail!("the child has not said how long the image is") };
    new.keep()?;
    tell(&to, bytes, how.json)
}

/// `FILE[:FORMAT]`.
fn listed(text: &str) -> anyhow::Result<Image> {
    let (path, format) = match text.rsplit_once(':') {
        Some((path, "raw")) => (path, Some(Format::Raw)),
        Some((path, "qcow2")) => (path, Some(Format::Qcow2)),
        _ => (text, None),
    };
    Image::open(Path::new(path), said(format, "FILE:raw"), Lock::Read)
}

fn resize(file: &Path, bytes: u64, shrink: bool, how: &How) -> anyhow::Result<()> {
    let image = Image::open(file, how.said(), Lock::Write)?;
    let before = image.bytes()?;
    if bytes < before && !shrink {
        bail!("{}", would_lose(file.display(), before, bytes));
    }
    match image.format {
        ImageFormat::Raw => image.set_len(bytes)?,
        ImageFormat::Qcow2 => {
            sealed::run(|fds| Job::Resize { image: image.pass(fds), bytes })?;
        }
    }
    tell(file, bytes, how.json)
}

fn snapshot(Snapshot { file, overlay, inside, how }: Snapshot) -> anyhow::Result<()> {
    if let Some(overlay) = overlay {
        let bytes = over(&overlay, &file, how.said(), None)?;
        return tell(&overlay, bytes, how.json);
    }
    // qemu-img, which works on what is inside, locks the image itself.
    if Image::peek(&file, how.said())?.0.format == ImageFormat::Raw {
        bail!("{} is raw, there are no snapshots inside: name an overlay", file.display());
    }
    match inside {
        Inside { create: Some(name), .. } => qemu::change(&file, "-c", &name),
        Inside { apply: Some(name), .. } => qemu::change(&file, "-a", &name),
        Inside { delete: Some(name), .. } => qemu::change(&file, "-d", &name),
        Inside { .. } => qemu::list(&file, how.json),
    }
}

/// Says what was made, to those who want JSON.
fn tell(path: &Path, bytes: u64, json: bool) -> anyhow::Result<()> {
    if !json {
        return Ok(());
    }
    print(&json!({ "path": std::path::absolute(path)?, "bytes": bytes }).to_string())
}
