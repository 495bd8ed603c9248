//! Tells the service manager how far this process is (sd_notify(3)), if it asked for that.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service is up.
pub fn ready() {
    tell("READY=1");
}

/// Says that the service lives, as often as the service manager wants to hear it; never, if it does not. Run by the loop
/// that serves, this tells of it: a loop that stands still is silent.
pub async fn keep_alive() {
    let asked = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok()).filter(|us| *us > 0);
    let Some(microseconds) = asked else { return };
    let mut beat = tokio::time::interval(Duration::from_micros(microseconds) / 3);
    loop {
        beat.tick().await;
        tell("WATCHDOG=1");
    }
}

/// The service is going down.
pub fn stopping() {
    tell("STOPPING=1");
}

fn tell(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    // Whoever asked and cannot be told has a time-out for that.
    let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(state.as_bytes(), &address?));
}
