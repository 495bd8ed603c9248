//! Runs a program of the host's to its end, with a text as its standard input: `nft`.
//!
//! It is waited for without holding anybody up, and killed when it is late: then, and when the caller is dropped.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::time::timeout;

use crate::process::Process;
use crate::process::spawn::{Surroundings, spawn};
use crate::value::text::one_line;

/// Bytes that are kept of what it says.
const SAID: u64 = 4096;

/// Runs `program` with `args`.
///
/// # Errors
/// It cannot be started, has failed, which its first line tells, or is late.
pub async fn run(program: &Path, args: &[&str], input: &str, deadline: Duration) -> io::Result<()> {
    let memory = |name: &str| memfd_create(name, MFdFlags::MFD_CLOEXEC).map(File::from);
    let (mut gives, mut says) = (memory("input")?, memory("output")?);
    gives.write_all(input.as_bytes())?;
    gives.rewind()?;
    let args: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
    let around = Surroundings { gives: Some(gives.as_fd()), ..Surroundings::default() };
    let (pid, pidfd) = spawn(program, &args, says.as_fd(), around)?;
    let process = Process::new(pid, pidfd)?;
    let Ok(how) = timeout(deadline, process.ended()).await else {
        let late = format!("{} was killed: it did not end within {deadline:?}", program.display());
        return Err(io::Error::new(io::ErrorKind::TimedOut, late));
    };
    process.reap().await;
    if how == Process::ENDED_WELL {
        return Ok(());
    }
    let mut said = Vec::new();
    says.rewind()?;
    says.take(SAID).read_to_end(&mut said)?;
    let said = String::from_utf8_lossy(&said);
    let said = said.lines().next().map_or(how, one_line);
    Err(io::Error::other(said))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    #[tokio::test(flavor = "current_thread")]
    async fn a_program_reads_its_text_and_what_it_says_is_told_if_it_fails() {
        let shell = Path::new("/bin/sh");
        run(shell, &["-c", "read a; test \"$a\" = text"], "text\n", DEADLINE).await.unwrap();
        let error = run(shell, &[], "echo no such table >&2; echo more; exit 3", DEADLINE).await.unwrap_err();
        assert_eq!(error.to_string(), "no such table");
        let error = run(shell, &[], "exit 3", DEADLINE).await.unwrap_err();
        assert_eq!(error.to_string(), "exited with status 3");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn one_that_is_late_is_killed_and_nobody_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid").display().to_string();
        let began = Instant::now();
        let text = format!("echo $$ >{file}; exec sleep 1000");
        let error = run(Path::new("/bin/sh"), &[], &text, Duration::from_millis(300)).await.unwrap_err();
        assert!(error.to_string().contains("was killed: it did not end within 300ms"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5));
        let pid = std::fs::read_to_string(file).unwrap();
        let lives = || Path::new("/proc").join(pid.trim()).exists();
        while lives() {
            assert!(began.elapsed() < Duration::from_secs(20), "it lives");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
