//! Checks of a guest's disk and NIC, from inside the guest, with any VMM.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::guest::Guest;
use domus_driver::process::tied;

/// Everything is emulated, some of it twice.
const PATIENCE: Duration = Duration::from_secs(240);

const TCP_BYTES: usize = 32 << 20;

/// Writes 64 MiB of random bytes through ext4 on `/dev/vda`, drops the page cache, and reads them back.
pub fn disk(guest: &mut Guest) -> Result<()> {
    guest
        .run("grep -q '^/dev/vda / ext4' /proc/mounts", PATIENCE)
        .context("the root is not ext4 on /dev/vda")?;
    guest.run("dd if=/dev/urandom of=/data/a bs=1M count=64 2>/dev/null && sync", PATIENCE)?;
    guest.run("cd /data && md5sum a >a.md5 && sync && echo 3 >/proc/sys/vm/drop_caches", PATIENCE)?;
    disk_again(guest)
}

/// Reads back what [`disk`] wrote, after a reboot or in another virtual machine.
pub fn disk_again(guest: &mut Guest) -> Result<()> {
    let output = guest.run("cd /data && test $(stat -c %s a) = 67108864 && md5sum -c a.md5", PATIENCE)?;
    if output.trim() != "a: OK" {
        bail!("md5sum said {:?}", output.trim());
    }
    Ok(())
}

/// Sets eth0 up as `guest_ip`, pings both ways, and sends 32 MiB by TCP each way.
///
/// `host_ip` is an address of this machine on the same link, both with a 24-bit prefix.
pub fn network(guest: &mut Guest, host_ip: Ipv4Addr, guest_ip: Ipv4Addr) -> Result<()> {
    guest.run(&format!("ip addr add {guest_ip}/24 dev eth0 && ip link set eth0 up"), PATIENCE)?;
    guest.run(&format!("ping -c 3 -W 20 {host_ip}"), PATIENCE).context("the guest's ping")?;
    ping(guest_ip)?;
    to_host(guest, host_ip).context("TCP from the guest")?;
    to_guest(guest, host_ip).context("TCP to the guest")
}

/// Pings from this machine.
pub fn ping(address: Ipv4Addr) -> Result<()> {
    let output = Command::new("ping").args(["-c", "3", "-W", "20", &address.to_string()]).output()?;
    if !output.status.success() {
        bail!(
            "{address} does not answer a ping from the host: {}",
            String::from_utf8_lossy(&output.stdout).trim()
        );
    }
    Ok(())
}

fn to_host(guest: &mut Guest, host_ip: Ipv4Addr) -> Result<()> {
    guest.run("dd if=/dev/urandom of=/tmp/up bs=1M count=32 2>/dev/null", PATIENCE)?;
    let sum = guest.run("md5sum </tmp/up", PATIENCE)?;
    let listener = TcpListener::bind((host_ip, 0)).with_context(|| format!("cannot listen on {host_ip}"))?;
    let command = format!("nc {host_ip} {} </tmp/up; rm /tmp/up", listener.local_addr()?.port());
    let id = guest.start(&command)?;
    let mut stream = accept(&listener)?;
    let mut bytes = Vec::with_capacity(TCP_BYTES);
    stream.read_to_end(&mut bytes).with_context(|| format!("after {} bytes", bytes.len()))?;
    drop(stream);
    guest.finish(id, &command, PATIENCE)?;
    compare(&bytes, &sum)
}

fn to_guest(guest: &mut Guest, host_ip: Ipv4Addr) -> Result<()> {
    let mut bytes = vec![0; TCP_BYTES];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let listener = TcpListener::bind((host_ip, 0)).with_context(|| format!("cannot listen on {host_ip}"))?;
    let command = format!("nc {host_ip} {} </dev/null | md5sum", listener.local_addr()?.port());
    let id = guest.start(&command)?;
    let mut stream = accept(&listener)?;
    stream.write_all(&bytes)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let sum = guest.finish(id, &command, PATIENCE)?;
    compare(&bytes, &sum)
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error).context("the guest did not connect"),
        }
    }
}

/// Compares `bytes` with the sum the guest printed, by this machine's md5sum.
fn compare(bytes: &[u8], guest_sum: &str) -> Result<()> {
    if bytes.len() != TCP_BYTES {
        bail!("{} bytes came, {TCP_BYTES} were sent", bytes.len());
    }
    let mut md5sum = tied("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    md5sum.stdin.take().context("no pipe")?.write_all(bytes)?;
    let output = md5sum.wait_with_output()?;
    let ours = String::from_utf8_lossy(&output.stdout);
    if ours.split(' ').next() != guest_sum.split(' ').next() {
        bail!("the sums differ: {:?} here, {:?} in the guest", ours.trim(), guest_sum.trim());
    }
    Ok(())
}
