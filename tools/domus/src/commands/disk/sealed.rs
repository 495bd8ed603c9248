//! The child that parses images: it gets descriptors, closes its sandbox, does one job and ends.
//!
//! ```text
//!   command ──Job + descriptors──▶ child ─▶ sandbox::enter ─▶ sandbox::seal ─▶ parse, copy …
//!           ◀──Report, Report …───
//! ```
//!
//! The child is this program again, with a socket for standard input. After the seal it can open nothing, and a filter
//! kills it at any system call beyond reading, writing and its ring.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::iter;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use domus_block::async_io::AsyncDisk;
use domus_block::async_io::reactor::Reactor;
use domus_block::qcow2;
use domus_block::uring::NewUring;
use domus_startup::sandbox::{self, Allow, COMMON};
use domus_startup::{Link, control};
use futures_util::StreamExt;
use futures_util::stream;
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared_abi::control::{FdIndex, ImageFormat};

use super::files::Image;

/// Whom a child becomes that root started: `nobody` of every distribution.
const NOBODY: u32 = 65534;
/// Bytes that are copied at once.
const PIECE: u64 = 1 << 20;
/// How many of them are under way.
const PIECES: usize = 8;

/// The system calls of the child beyond [`COMMON`]: its ring, tables of images, the length of files, and a second
/// descriptor of one.
const OWN: &[Allow] = &[
    Allow::Call(libc::SYS_io_uring_enter),
    Allow::Call(libc::SYS_pread64),
    Allow::Call(libc::SYS_lseek),
    Allow::Call(libc::SYS_ftruncate),
    Allow::Argument(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC as u32),
];

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub enum Job {
    /// Say what a qcow2 image is.
    Look(Named),
    /// Make an empty file a qcow2 image.
    Create { image: Named, bytes: u64, backing: Option<(String, ImageFormat)> },
    /// Give a qcow2 image another size.
    Resize { image: Named, bytes: u64 },
    /// Copy an image into an empty file.
    Convert { from: Named, backing: Vec<Named>, to: Named, format: ImageFormat },
}

/// An image as a job names it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Named {
    fd: FdIndex,
    path: PathBuf,
    format: ImageFormat,
}

/// What the child says.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    /// Bytes done, and of how many.
    Progress(u64, u64),
    Done(Outcome),
    Failed(String),
}

/// What came of a job.
#[derive(Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// It is done.
    Done,
    /// The disk has so many bytes.
    Size(u64),
    /// What was looked at.
    Facts(Facts),
}

/// What a qcow2 image is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Facts {
    /// Of the format: 2 or 3.
    pub version: u32,
    /// Bytes of a cluster.
    pub cluster: u32,
    /// The size of the disk.
    pub bytes: u64,
    /// Number of snapshots inside.
    pub snapshots: u32,
    /// The backing image, as the image names it.
    pub backing: Option<String>,
    /// Its format, as the image names it.
    pub backing_format: Option<String>,
}

/// Descriptors that go with a job.
#[derive(Debug, Default)]
pub struct Fds(Vec<OwnedFd>);

impl Fds {
    /// Adds an open image.
    pub fn add(&mut self, file: &File, path: &Path, format: ImageFormat) -> Named {
        let fd = FdIndex(u8::try_from(self.0.len()).unwrap_or(u8::MAX));
        // One that cannot be copied is missing in the message, which is then refused.
        self.0.extend(file.as_fd().try_clone_to_owned());
        Named { fd, path: path.into(), format }
    }
}

/// Looks at a qcow2 image.
///
/// # Errors
/// One line for the user.
pub fn look(image: &Image) -> anyhow::Result<Facts> {
    match run(|fds| Job::Look(image.pass(fds)))? {
        Outcome::Facts(facts) => Ok(facts),
        _ => bail!("the child has not said what the image is"),
    }
}

/// Has a job done, with a progress bar on a terminal.
///
/// # Errors
/// One line for the user.
pub fn run(job: impl FnOnce(&mut Fds) -> Job) -> anyhow::Result<Outcome> {
    let mut fds = Fds::default();
    let job = job(&mut fds);
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .context("cannot make a socket")?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut child = Command::new(program)
        .arg("disk-sealed")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start this program again, to look at images in a sandbox")?;
    let result = follow(&Link::from(ours), &job, &fds.0);
    drop(fds);
    // It ends with its job, or because its socket is closed.
    let status = child.wait().context("cannot wait for the child")?;
    result
        .with_context(|| format!("the child that looks at images has ended: {status}"))?
        .map_err(anyhow::Error::msg)
}

/// None of the outer errors means that the child has said something final.
fn follow(link: &Link, job: &Job, fds: &[OwnedFd]) -> anyhow::Result<Result<Outcome, String>> {
    link.send(job, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
    let mut bar = None;
    loop {
        match link.receive::<Report>()?.0 {
            Report::Done(outcome) => return Ok(Ok(outcome)),
            Report::Failed(text) => return Ok(Err(text)),
            Report::Progress(done, all) => {
                if io::stderr().is_terminal() {
                    bar.get_or_insert_with(|| progress(all)).set_position(done);
                }
            }
        }
    }
}

fn progress(all: u64) -> ProgressBar {
    let bar = ProgressBar::new(all);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    bar
}

/// The child: does one job.
pub fn serve() -> ExitCode {
    let Ok(socket) = io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let link = Link::from(socket);
    let (job, fds) = match link.receive::<Job>() {
        Ok(received) => received,
        Err(error) => {
            domus_startup::say(format_args!("domus: {}", control::chain(&error)));
            return ExitCode::FAILURE;
        }
    };
    let report = match sealed(&link, job, fds) {
        Ok(outcome) => Report::Done(outcome),
        Err(error) => Report::Failed(format!("{error:#}")),
    };
    if link.send(&report, &[]).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn sealed(link: &Link, job: Job, fds: domus_startup::Fds) -> anyhow::Result<Outcome> {
    let own = nix::unistd::geteuid();
    let ring = NewUring::new(&[])?;
    sandbox::enter(if own.is_root() { NOBODY } else { own.as_raw() })?;
    let reactor = Arc::new(Reactor::new(ring.enable()?));
    sandbox::seal(&[COMMON, OWN].concat())?;
    let mut worker = Worker { link, fds, reactor: reactor.clone() };
    reactor.block_on(worker.work(job))
}

struct Worker<'a> {
    link: &'a Link,
    fds: domus_startup::Fds,
    reactor: Arc<Reactor>,
}

impl Worker<'_> {
    fn take(&mut self, named: Named) -> anyhow::Result<(qcow2::OpenImage, ImageFormat)> {
        let file = File::from(self.fds.take(named.fd)?);
        Ok((qcow2::OpenImage { path: named.path, file, direct: false }, named.format))
    }

    async fn work(&mut self, job: Job) -> anyhow::Result<Outcome> {
        match job {
            Job::Look(image) => {
                let (image, _) = self.take(image)?;
                let qcow2::Facts { header, backing, backing_format } = self.looked(&image).await?;
                let domus_block::qcow2::header::Facts { version, cluster, bytes, snapshots, .. } = header;
                Ok(Outcome::Facts(Facts { version, cluster, bytes, snapshots, backing, backing_format }))
            }
            Job::Create { image, bytes, backing } => {
                let (image, _) = self.take(image)?;
                qcow2::create(&self.reactor, image, bytes, backing).await?;
                Ok(Outcome::Done)
            }
            Job::Resize { image, bytes } => {
                let (image, _) = self.take(image)?;
                self.looked(&image).await?;
                let image = qcow2::Image::open_alone(&self.reactor, image, ImageFormat::Qcow2).await?;
                match image.size().await > bytes {
                    true => image.shrink(bytes).await?,
                    false => drop(image.resize(Some(bytes)).await?),
                }
                Ok(Outcome::Done)
            }
            Job::Convert { from, backing, to, format } => self.convert(from, backing, to, format).await,
        }
    }

    /// Looks at a qcow2 image, and whether all of it is there.
    async fn looked(&self, image: &qcow2::OpenImage) -> anyhow::Result<qcow2::Facts> {
        let qcow2::OpenImage { path, file, direct } = image;
        let again = qcow2::OpenImage { path: path.clone(), file: file.try_clone()?, direct: *direct };
        Ok(qcow2::look(&self.reactor, again).await?)
    }

    async fn convert(
        &mut self,
        from: Named,
        backing: Vec<Named>,
        to: Named,
        format: ImageFormat,
    ) -> anyhow::Result<Outcome> {
        let (from, from_format) = self.take(from)?;
        let backing = backing
            .into_iter()
            .map(|named| self.take(named).map(|(image, format)| (format, image)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let chain =
            iter::once((from_format, &from)).chain(backing.iter().map(|(format, image)| (*format, image)));
        for (format, image) in chain {
            if format == ImageFormat::Qcow2 {
                self.looked(image).await?;
            }
        }
        let source = qcow2::Image::open(&self.reactor, from, from_format, backing, false, true).await;
        let source = source.map_err(unlisted)?;
        let bytes = source.size().await;
        let (to, _) = self.take(to)?;
        match format {
            ImageFormat::Raw => to.file.set_len(bytes)?,
            ImageFormat::Qcow2 => {
                let again =
                    qcow2::OpenImage { path: to.path.clone(), file: to.file.try_clone()?, direct: false };
                qcow2::create(&self.reactor, again, bytes, None).await?;
            }
        }
        let target = qcow2::Image::open_alone(&self.reactor, to, format).await?;
        self.copy(&source, &target, bytes).await?;
        target.flush().await?;
        Ok(Outcome::Size(bytes))
    }

    /// Copies what does not read as zeros.
    async fn copy(&self, source: &qcow2::Image, target: &qcow2::Image, bytes: u64) -> anyhow::Result<()> {
        let mut at = 0;
        while let Some((start, len)) = source.next_data(at).await? {
            at = start + len;
            let pieces = (start..at).step_by(PIECE as usize).map(|offset| {
                let len = PIECE.min(at - offset) as usize;
                async move { (offset, copy_piece(source, target, offset, len).await) }
            });
            let mut pieces = stream::iter(pieces).buffered(PIECES);
            while let Some((offset, copied)) = pieces.next().await {
                copied?;
                self.link.send(&Report::Progress(offset, bytes), &[])?;
            }
        }
        Ok(())
    }
}

/// The line to write for an image that refers to one that is not listed: a path may hold what JSON escapes, and a
/// description (`json:{…}`) is no path at all.
fn unlisted(error: qcow2::ChainError) -> anyhow::Error {
    let qcow2::ChainError::Unlisted { image, backing, format } = error else { return error.into() };
    let (image, path) = (image.display(), backing.to_string_lossy());
    let Some(at) = path.find("json:") else {
        let line = json!([{ "path": path, "format": format }]);
        return anyhow!(
            "{image} is backed by {path}, which is not listed: give --backing FILE:{format}, and \"backing\": {line} in a \
             config, if it may be read"
        );
    };
    let description: Value = serde_json::from_str(&path[at + 5..]).unwrap_or_default();
    let part = |of: &Value, keys: &[&str]| keys.iter().find_map(|key| of[*key].as_str().map(str::to_owned));
    let file = part(&description, &["file.filename", "filename"])
        .or_else(|| part(&description["file"], &["filename"]))
        .unwrap_or_else(|| "/FILE".into());
    let format =
        part(&description, &["driver"]).filter(|driver| driver == "qcow2").unwrap_or_else(|| "raw".into());
    let line = json!([{ "path": file, "format": format }]);
    anyhow!(
        "{image} is backed by {}, which describes an image and names none: name it with qemu-img rebase -u -b '{file}' -F \
         {format}, and give --backing '{file}:{format}', or \"backing\": {line} in a config",
        &path[at..]
    )
}

async fn copy_piece(source: &qcow2::Image, target: &qcow2::Image, offset: u64, len: usize) -> io::Result<()> {
    let buffer = domus_block::async_io::buffer(len)?;
    let (buffer, read) = source.read(buffer, len, offset).await;
    read?;
    if buffer.as_ref().into_slice().iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    target.write(buffer, len, offset, false).await.1
}
