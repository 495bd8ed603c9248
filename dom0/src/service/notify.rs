//! Reports this process's state to the service manager (sd_notify(3)), if the service manager asked for it.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service is up.
pub fn ready() {
    tell("READY=1");
}

/// Sends the watchdog's keep-alive, three times per interval of `$WATCHDOG_USEC`; never without one. It must run in the
/// loop that serves, so that a loop that hangs stops sending.
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
