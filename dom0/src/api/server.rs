//! The socket of the API: who may connect, and who may do what.
//!
//! The socket belongs to root and, if there is one, to the group `domus`; its mode says who may connect, the peer's
//! user id (`SO_PEERCRED`) who may change anything. Each connection has its own task.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::rc::Rc;

use listenfd::ListenFd;
use nix::unistd::{Group, geteuid};
use tokio::net::{UnixListener, UnixStream};
use zlink::ReadyListener;
use zlink::tokio::unix::Stream;

use crate::api::bounded::{Bounded, Budgets};
use crate::api::service::{Rights, Session};
use crate::api::statistics::Samples;
use crate::service::Dom0;

/// Connections of those who may only ask that are served at the same time; root's are always served.
const MAX_CONNECTIONS: usize = 128;

/// Connections of one such user.
const MAX_OF_ONE: usize = 48;

/// Why the API cannot be offered.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}", path.display())]
pub struct ServerError {
    path: PathBuf,
    source: io::Error,
}

/// The listening socket. Dropping it removes the socket, unless the service manager has made it.
#[derive(Debug)]
pub struct Server {
    /// What is to be removed.
    path: Option<PathBuf>,
    listener: UnixListener,
}

impl Server {
    /// Takes the socket that the service manager hands over (sd_listen_fds(3)), or makes the one of `dom0`, which
    /// must hold its run directory's lock: what is at the path is dead.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn bind(dom0: &Dom0) -> Result<Self, ServerError> {
        let path = dom0.run_dir().api_socket();
        let handed = ListenFd::from_env().take_unix_listener(0).and_then(|listener| match listener {
            None => Ok(None),
            Some(listener) => {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener).map(Some)
            }
        });
        match handed {
            Ok(Some(listener)) => return Ok(Self { path: None, listener }),
            Ok(None) => {}
            Err(source) => return Err(ServerError { path, source }),
        }
        // Made aside and moved into place with its rights on: there is no moment with others.
        let aside = dom0.run_dir().path().join("domains").join(".dom0.sock");
        let make = || {
            match std::fs::remove_file(&aside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&aside)?;
            let group = if geteuid().is_root() { Group::from_name("domus").ok().flatten() } else { None };
            let mode = if group.is_some() { 0o660 } else { 0o600 };
            std::fs::set_permissions(&aside, PermissionsExt::from_mode(mode))?;
            if let Some(group) = group {
                chown(&aside, None, Some(group.gid.as_raw()))?;
            }
            std::fs::rename(&aside, &path)?;
            Ok(listener)
        };
        match make() {
            Ok(listener) => Ok(Self { path: Some(path), listener }),
            Err(source) => Err(ServerError { path, source }),
        }
    }

    /// Serves for ever. Must run in a `LocalSet`.
    pub async fn serve(&self, dom0: &Rc<Dom0>, samples: &Rc<Samples>) -> std::convert::Infallible {
        // By user.
        let connections = Rc::new(RefCell::new(BTreeMap::<u32, usize>::new()));
        let budgets = Budgets::default();
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // No descriptors left, or the like: it passes, and a busy loop would not help.
                    crate::log::stderr::line(format_args!("cannot accept a client: {error}"));
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                    continue;
                }
            };
            let Some((uid, rights)) = rights(&stream) else { continue };
            let budget = (rights == Rights::Read).then(|| budgets.of(uid));
            if budget.is_some() {
                let mut connections = connections.borrow_mut();
                let all: usize = connections.values().sum();
                let own = connections.entry(uid).or_default();
                if all >= MAX_CONNECTIONS || *own >= MAX_OF_ONE {
                    continue;
                }
                *own += 1;
            }
            let peer = stream.as_fd().try_clone_to_owned().ok();
            let (dom0, samples, connections) = (dom0.clone(), samples.clone(), connections.clone());
            tokio::task::spawn_local(async move {
                let counted = budget.is_some();
                if let Ok(stream) = Stream::try_from(stream) {
                    let listener = ReadyListener::new(Bounded { stream, budget });
                    // Ends when the client hangs up, or sends what is no Varlink.
                    let _ =
                        zlink::Server::new(listener, Session::new(dom0, rights, samples, peer)).run().await;
                }
                if counted {
                    let mut connections = connections.borrow_mut();
                    let left = connections.get(&uid).map_or(0, |count| count.saturating_sub(1));
                    match left {
                        0 => connections.remove(&uid),
                        left => connections.insert(uid, left),
                    };
                }
            });
        }
    }
}

/// Who the client is, and what that user may do.
fn rights(stream: &UnixStream) -> Option<(u32, Rights)> {
    let uid = stream.peer_cred().ok()?.uid();
    let owner = uid == 0 || uid == geteuid().as_raw();
    Some((uid, if owner { Rights::Change } else { Rights::Read }))
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}
