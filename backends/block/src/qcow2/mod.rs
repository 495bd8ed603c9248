//! Images with their backing chains, through imago: qcow2, and raw ones behind them.
//!
//! Refused: a backing image that the config does not list, or that is named twice in one chain; external data files,
//! encryption, extended L2 entries ([`header`]). A format is never guessed: the config names it. Promised: an
//! acknowledged write is in the file, both its data and the metadata that leads to the data, so that the process that
//! replaces this one finds it. A mapping is written after the reference counts that it needs, so a process killed at
//! any time leaks clusters at the worst.

mod disk;
pub mod header;
pub mod ring_file;
mod tables;

use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use imago::Storage;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::storage::ext::StorageExt;
use imago::{FormatAccess, FormatCreateBuilder, Mapping};
use shared_abi::control::ImageFormat;
use tokio::sync::RwLock;

use disk::WriteBack;

use header::HeaderError;
use ring_file::RingFile;
use tables::TablesError;

use crate::async_io::reactor::Reactor;

/// Most bytes of tables that are read before an image is served, if its end looks wrong: those of 2 TiB in clusters of
/// the usual size.
const MOST_TABLES: u64 = 256 << 20;

/// An image that was opened by somebody else.
#[derive(Debug)]
pub struct OpenImage {
    /// Its absolute path, which a relative backing path in it starts from.
    pub path: PathBuf,
    /// The image.
    pub file: File,
    /// `O_DIRECT`.
    pub direct: bool,
}

/// What to do about a backing image that is not listed.
fn cure(backing: &Path, format: &str) -> String {
    // QEMU's names of what is no file: `json:{…}`, `nbd://…`.
    let name = backing.file_name().unwrap_or_default().to_string_lossy();
    if backing.to_string_lossy().contains("json:{") || name.contains(':') {
        return "name a file there by qemu-img rebase -u, and list that".into();
    }
    let (path, format) = (serde_json::json!(backing), serde_json::json!(format));
    format!("add \"backing\": [{{\"path\": {path}, \"format\": {format}}}] to the disk if it may be read")
}

/// Why a chain of images cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The header is refused.
    #[error("{}", path.display())]
    Header {
        /// Of which image.
        path: PathBuf,
        /// Why.
        source: HeaderError,
    },
    /// The config does not list it.
    #[error("{} is backed by {}, which its disk does not list: {}", image.display(), backing.display(), cure(backing, format))]
    Unlisted {
        /// The image that names it.
        image: PathBuf,
        /// What it names.
        backing: PathBuf,
        /// What it says of the format, if that is one of ours.
        format: &'static str,
    },
    /// Listed once, named twice: a loop.
    #[error("{} is backed by {}, which is in its chain already", image.display(), backing.display())]
    Loop {
        /// The image that names it.
        image: PathBuf,
        /// What it names.
        backing: PathBuf,
    },
    /// imago refuses it, or it cannot be read.
    #[error("{}", path.display())]
    Image {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not all of it is there.
    #[error("{}", path.display())]
    Tables {
        /// Which.
        path: PathBuf,
        /// What is missing.
        source: TablesError,
    },
    /// Smaller than a sector.
    #[error("{} has {bytes} bytes, which are less than a sector", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
        /// The guest's size.
        bytes: u64,
    },
}

/// An image and what is behind it.
#[derive(Debug)]
pub struct Image {
    /// Everything but discarding shares it: imago wants to be alone when mappings go away.
    access: RwLock<FormatAccess<RingFile>>,
    sync: bool,
    write_back: WriteBack,
    /// The size of what is behind it: what is new up to there would show it.
    behind: u64,
}

/// The images a chain may have; what has been opened is taken out.
struct Listed {
    reactor: Arc<Reactor>,
    images: Vec<(PathBuf, ImageFormat, Option<OpenImage>)>,
    /// What is behind the first image is left out.
    alone: bool,
    /// The size of what is behind the image opened last, which is the first of the chain.
    behind: u64,
}

impl Image {
    /// Opens a chain. With `sync` unset a flush brings everything into the host's cache only.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn open(
        reactor: &Arc<Reactor>,
        image: OpenImage,
        format: ImageFormat,
        backing: Vec<(ImageFormat, OpenImage)>,
        writable: bool,
        sync: bool,
    ) -> Result<Self, ChainError> {
        let path = image.path.clone();
        let images = backing.into_iter().map(|(format, image)| (image.path.clone(), format, Some(image)));
        let mut listed =
            Listed { reactor: reactor.clone(), images: images.collect(), alone: false, behind: 0 };
        let access = listed.open(image, format, writable).await?;
        let bytes = access.size();
        if bytes < crate::request::SECTOR {
            return Err(ChainError::Empty { path, bytes });
        }
        Ok(Self {
            access: RwLock::new(access),
            sync,
            write_back: WriteBack::default(),
            behind: listed.behind,
        })
    }

    /// Opens an image that nothing is read through: what is behind it does not matter.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn open_alone(
        reactor: &Arc<Reactor>,
        image: OpenImage,
        format: ImageFormat,
    ) -> Result<Self, ChainError> {
        let mut alone = Listed { reactor: reactor.clone(), images: Vec::new(), alone: true, behind: 0 };
        let access = RwLock::new(alone.open(image, format, true).await?);
        Ok(Self { access, sync: true, write_back: WriteBack::default(), behind: alone.behind })
    }

    /// Its size in bytes, as the guest sees it.
    pub async fn size(&self) -> u64 {
        self.access.read().await.size()
    }

    /// The next range from `offset` on that does not read as zeros by the image's own account.
    ///
    /// # Errors
    /// What imago or the system says.
    pub async fn next_data(&self, mut offset: u64) -> io::Result<Option<(u64, u64)>> {
        let access = self.access.read().await;
        loop {
            let left = access.size().saturating_sub(offset);
            match access.get_mapping(offset, left).await? {
                (Mapping::Eof { .. }, _) | (_, 0) => return Ok(None),
                (Mapping::Zero { .. }, len) => offset += len,
                (_, len) => return Ok(Some((offset, len))),
            }
        }
    }

    /// Makes a disk that nobody uses shorter: what is behind its new end is lost.
    ///
    /// # Errors
    /// What imago or the system says.
    pub async fn shrink(&self, bytes: u64) -> io::Result<()> {
        let mut access = self.access.write().await;
        access.resize_shrink(bytes).await?;
        access.flush().await?;
        access.sync().await
    }
}

/// Formats a file as a qcow2 image of `bytes` bytes. It reads as zeros or, with the path and format of a backing image,
/// as that image.
///
/// # Errors
/// What imago or the system says.
pub async fn create(
    reactor: &Arc<Reactor>,
    image: OpenImage,
    bytes: u64,
    backing: Option<(String, ImageFormat)>,
) -> io::Result<()> {
    let file = RingFile::new(reactor.clone(), image.file, &image.path, image.direct);
    let mut builder = Qcow2::<RingFile>::create_builder(file).size(bytes);
    if let Some((path, format)) = backing {
        builder = builder.backing(path, format_name(format).into());
    }
    builder.create().await
}

/// What a qcow2 image says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its header.
    pub header: header::Facts,
    /// The path of its backing image, as it is written there.
    pub backing: Option<String>,
    /// The format of its backing image, as it is written there.
    pub backing_format: Option<String>,
}

/// Looks at an image and whether all of it is there, and not at what is behind it.
///
/// # Errors
/// [`ChainError`].
pub async fn look(reactor: &Arc<Reactor>, image: OpenImage) -> Result<Facts, ChainError> {
    let path = image.path.clone();
    let file = RingFile::new(reactor.clone(), image.file, &path, image.direct);
    let header = check_header(&file, &path).await?;
    let cut_off = |source| ChainError::Tables { path: path.clone(), source };
    tables::check(&file, &header, u64::MAX).await.map_err(cut_off)?;
    let refused = |source| ChainError::Image { path, source };
    let image = Qcow2::<RingFile>::open_image(file, false).await.map_err(refused)?;
    let backing = image.implicit_backing_file().cloned();
    Ok(Facts { header, backing, backing_format: image.implicit_backing_format().cloned() })
}

/// Looks at what imago is not trusted with, in an image that is to be served.
async fn check(file: &RingFile, path: &Path, writable: bool) -> Result<(), ChainError> {
    let facts = check_header(file, path).await?;
    let cut_off = |source| ChainError::Tables { path: path.into(), source };
    let refcounts = tables::screen(file, &facts, MOST_TABLES).await.map_err(cut_off)?;
    let refused = |source| ChainError::Header { path: path.into(), source };
    if writable { header::check_refcount_table(&refcounts).map_err(refused) } else { Ok(()) }
}

async fn check_header(file: &RingFile, path: &Path) -> Result<header::Facts, ChainError> {
    let unread = |source| ChainError::Image { path: path.into(), source };
    let refused = |source| ChainError::Header { path: path.into(), source };
    let mut first = [0; header::LEN];
    file.read(&mut first[..], 0).await.map_err(unread)?;
    let cut_off = |source| ChainError::Tables { path: path.into(), source };
    tables::check_header(&first, file.size().map_err(unread)?).map_err(cut_off)?;
    header::check(&first).map_err(refused)
}

/// What an image calls the format of what is behind it.
fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Raw => "raw",
        ImageFormat::Qcow2 => "qcow2",
    }
}

/// A path without `.`, `..` and double slashes. It is only compared, never opened.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            // Above the root is the root.
            Component::ParentDir => drop(normal.pop()),
            other => normal.push(other),
        }
    }
    normal
}

impl Listed {
    /// Opens an image and, again with this, what is behind it.
    fn open(
        &mut self,
        image: OpenImage,
        format: ImageFormat,
        writable: bool,
    ) -> LocalBoxFuture<'_, Result<FormatAccess<RingFile>, ChainError>> {
        Box::pin(async move {
            let path = image.path.clone();
            let refused = |source| ChainError::Image { path: path.clone(), source };
            let file = RingFile::new(self.reactor.clone(), image.file, &path, image.direct);
            if format == ImageFormat::Raw {
                return Ok(FormatAccess::new(Raw::open_image(file, writable).await.map_err(refused)?));
            }
            check(&file, &path, writable).await?;
            let mut image = Qcow2::<RingFile>::open_image(file, writable).await.map_err(refused)?;
            let backing = match image.implicit_backing_file() {
                Some(name) if !self.alone => {
                    let named = normal(&path.parent().unwrap_or(Path::new("/")).join(name));
                    let qcow2 = image.implicit_backing_format().is_some_and(|format| format == "qcow2");
                    let (format, behind) = self.take(&path, named, if qcow2 { "qcow2" } else { "raw" })?;
                    Some(self.open(behind, format, false).await?)
                }
                _ => None,
            };
            self.behind = match (&backing, image.implicit_backing_file()) {
                (Some(backing), _) => backing.size(),
                (None, Some(_)) => u64::MAX,
                (None, None) => 0,
            };
            image.set_data_file(None);
            image.set_backing(backing);
            Ok(FormatAccess::new(image))
        })
    }

    fn take(
        &mut self,
        image: &Path,
        named: PathBuf,
        format: &'static str,
    ) -> Result<(ImageFormat, OpenImage), ChainError> {
        let (image, backing) = (image.to_path_buf(), named);
        match self.images.iter_mut().find(|(path, ..)| normal(path) == backing) {
            None => Err(ChainError::Unlisted { image, backing, format }),
            Some((_, format, open)) => match open.take() {
                None => Err(ChainError::Loop { image, backing }),
                Some(open) => Ok((*format, open)),
            },
        }
    }
}

#[cfg(test)]
mod tests;
