//! Child processes that cannot outlive their test: killed when their owner is dropped, and those of [`tied`] by the
//! kernel, too, when this process dies.

use std::error::Error;
use std::ffi::OsStr;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::PATIENCE;

/// A running program, killed and reaped on drop.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
}

/// A command that the kernel kills when the thread that started it ends.
pub fn tied<S: AsRef<OsStr>>(program: S) -> Command {
    // setpriv sets PR_SET_PDEATHSIG and then becomes the program: no process of its own stays between.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

impl Running {
    /// Starts `command`; `name` is what errors call it.
    pub fn start(name: &str, command: &mut Command) -> io::Result<Self> {
        let child = command.spawn()?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// What errors call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status when it has ended.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills it, if it has not ended, and waits for that.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }

    /// Its exit status, which comes within [`PATIENCE`].
    ///
    /// # Errors
    /// It goes on.
    pub fn end(&mut self) -> Result<ExitStatus> {
        self.wait(PATIENCE)?.with_context(|| format!("{} does not end", self.name))
    }

    /// Tries again and again until it succeeds.
    ///
    /// # Errors
    /// The process has ended, or `limit` is over.
    pub fn until<T, E: Error + Send + Sync + 'static>(
        &mut self,
        limit: Duration,
        mut attempt: impl FnMut() -> Result<T, E>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            let error = match attempt() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if let Some(status) = self.ended()? {
                bail!("{} has ended with {status}", self.name);
            }
            if start.elapsed() > limit {
                return Err(error).with_context(|| format!("{} is not ready", self.name));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Connects to the socket at `path` as soon as the process listens there.
    ///
    /// # Errors
    /// It has ended, or does not listen within [`PATIENCE`].
    pub fn connect(&mut self, path: &Path) -> Result<UnixStream> {
        self.until(PATIENCE, || UnixStream::connect(path))
    }

    /// Waits up to `limit` for it to end.
    pub fn wait(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if start.elapsed() > limit {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// True if this process may raise the limits of others' processes (`CAP_SYS_RESOURCE`), as dom0 does.
pub fn may_raise_limits() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.is_some_and(|caps| u64::from_str_radix(caps.trim(), 16).is_ok_and(|caps| caps & (1 << 24) != 0))
}

/// The length of files that this process cannot write beyond, in bytes; none if there is no limit.
///
/// # Errors
/// There is no such process.
pub fn longest_file(pid: u32) -> Result<Option<u64>> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max file size"));
    let soft = line.and_then(|line| line.split_whitespace().next()).context("no limit of files")?;
    Ok(if soft == "unlimited" { None } else { Some(soft.parse()?) })
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks `ready` every 20 ms until it says yes; `false` when `limit` is over first.
pub fn poll_until(limit: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if ready() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Context switches so far of all threads of a process: what wakes a thread adds to it.
///
/// # Errors
/// There is no such process.
pub fn switches(pid: u32) -> io::Result<u64> {
    let mut switches = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        switches += sum(&task?.path().join("status"), |key| key.ends_with("ctxt_switches"))?;
    }
    Ok(switches)
}

/// KiB of memory that a process shares with no other one.
///
/// # Errors
/// There is no such process.
pub fn private_memory(pid: u32) -> io::Result<u64> {
    sum(Path::new(&format!("/proc/{pid}/smaps_rollup")), |key| key.starts_with("Private_"))
}

/// The sum of the numbers behind the keys that are `wanted`.
fn sum(path: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<u64> {
    let text = std::fs::read_to_string(path)?;
    let entries = text.lines().filter_map(|line| line.split_once(':'));
    let numbers =
        entries.filter(|(key, _)| wanted(key)).filter_map(|(_, value)| value.split_whitespace().next());
    numbers.map(|number| number.parse::<u64>().map_err(io::Error::other)).sum()
}
