//! A vhost-user-blk backend on a socket, tied to its CPU, killed when it is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};
use domus_driver::process::{Running, poll_until, tied};

use super::cases::{Program, Storage};
use super::file::SIZE;

/// What a backend serves.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// Which kind.
    pub storage: Storage,
    /// The file, unless it is a null disk.
    pub file: Option<&'a Path>,
}

/// A running backend.
#[derive(Debug)]
pub struct Backend {
    process: Running,
    socket: PathBuf,
}

impl Backend {
    /// Starts a backend on CPU `cpu` and waits for its socket, which it makes in `folder`.
    pub fn start(
        program: Program,
        bin: &Path,
        served: Served<'_>,
        cpu: usize,
        folder: &Path,
    ) -> Result<Self> {
        let (socket, log) = (folder.join("disk.sock"), folder.join("log"));
        let _ = fs::remove_file(&socket);
        let words = command_line(program, served);
        let mut command = pinned(cpu);
        match program {
            Program::Domus => command.arg(bin.join(&words[0])),
            _ => command.arg(&words[0]),
        };
        let file = fs::File::create(&log)?;
        command
            .args(&words[1..])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let mut process = Running::start(program.name(), &mut command)?;
        let ready = || socket.exists() || !matches!(process.ended(), Ok(None));
        if !poll_until(Duration::from_secs(10), ready) || !socket.exists() {
            bail!("it does not listen: {}", fs::read_to_string(&log)?.trim());
        }
        Ok(Self { process, socket })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// A command on one CPU that ends with this process.
pub fn pinned(cpu: usize) -> Command {
    let mut command = tied("taskset");
    command.args(["--cpu-list", &cpu.to_string()]);
    command
}

/// How a backend is started, in the folder where its socket shall be.
pub fn command_line(program: Program, served: Served<'_>) -> Vec<String> {
    let file = served.file.unwrap_or(Path::new("")).display();
    let words = match program {
        Program::Domus | Program::Guest | Program::Fio => match served.storage {
            Storage::Direct => format!("domus-block --socket-path disk.sock --cache none --blk-file {file}"),
            Storage::PageCache | Storage::Tmpfs => {
                format!("domus-block --socket-path disk.sock --cache writeback --blk-file {file}")
            }
            Storage::Null => format!("domus-block --socket-path disk.sock --null {SIZE}"),
        },
        Program::StorageDaemon | Program::StorageDaemonNative => {
            let aio = if program == Program::StorageDaemon { "io_uring" } else { "native" };
            let node = match served.storage {
                Storage::Direct => format!("driver=file,filename={file},aio={aio},cache.direct=on"),
                Storage::PageCache | Storage::Tmpfs => {
                    format!("driver=file,filename={file},aio={aio},cache.direct=off")
                }
                Storage::Null => format!("driver=null-co,size={SIZE}"),
            };
            format!(
                "qemu-storage-daemon --object iothread,id=thread --blockdev {node},node-name=disk \
                 --export vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path=disk.sock,writable=on,iothread=thread"
            )
        }
    };
    words.split_whitespace().map(str::to_owned).collect()
}
