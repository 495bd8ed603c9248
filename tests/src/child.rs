//! Child processes that cannot outlive their test: dropping the owner kills the child, and the kernel kills it when
//! this process dies.

use std::ffi::OsStr;
use std::io;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

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
