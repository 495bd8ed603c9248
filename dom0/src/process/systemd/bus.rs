//! Calls to systemd over the system bus, and the ends of its jobs.
//!
//! The connection is made when it is first needed, and made again when the bus was started again. Nothing waits for
//! ever: a call for [`ANSWER`], a job for [`JOB`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::timeout;
use zbus::message::Type;
use zbus::{Connection, DynamicType, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant};

use crate::value::names::object;

/// Who answers.
const MANAGER: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";

/// Within this time a call is answered.
const ANSWER: Duration = Duration::from_secs(25);

/// Within this time a job is done. Above the units' own time-out for starts.
const JOB: Duration = Duration::from_secs(60);

/// What went wrong, in one line.
pub type Failure = String;

/// A job that has ended: its object, and how.
type Ended = (OwnedObjectPath, String);

/// Those who wait for jobs, by unit.
type Waiters = Rc<RefCell<BTreeMap<String, mpsc::UnboundedSender<Ended>>>>;

/// The connection to systemd. Used by one thread, in a `LocalSet`.
#[derive(Debug, Default)]
pub struct Bus {
    connection: tokio::sync::Mutex<Option<Connection>>,
    waiters: Waiters,
}

fn failed(error: zbus::Error) -> Failure {
    match error {
        zbus::Error::MethodError(name, None, _) => name.to_string(),
        zbus::Error::MethodError(_, Some(text), _) => crate::value::text::one_line(&text),
        error => crate::value::text::one_line(&error.to_string()),
    }
}

impl Bus {
    async fn connection(&self) -> Result<Connection, Failure> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        let connect = async {
            let connection = Connection::system().await?;
            let ends = MatchRule::builder()
                .msg_type(Type::Signal)
                .sender(MANAGER)
                .path(MANAGER_PATH)
                .interface(MANAGER_INTERFACE)
                .member("JobRemoved")
                .build()?;
            let ends = MessageStream::for_match_rule(ends, &connection, None).await?;
            // Without this systemd sends no signal.
            let subscribe = connection.call_method(
                Some(MANAGER),
                MANAGER_PATH,
                Some(MANAGER_INTERFACE),
                "Subscribe",
                &(),
            );
            subscribe.await?;
            tokio::task::spawn_local(deliver(ends, self.waiters.clone()));
            Ok(connection)
        };
        let connected = timeout(ANSWER, connect).await.map_err(|_| silent("the system bus", ANSWER))?;
        let connection = connected.map_err(|error| format!("the system bus: {}", failed(error)))?;
        *slot = Some(connection.clone());
        Ok(connection)
    }

    /// Calls a method of any service of the bus.
    ///
    /// # Errors
    /// What it said, in one line.
    pub async fn call(
        &self,
        (service, path, interface): (&str, &str, &str),
        method: &str,
        body: &(impl Serialize + DynamicType),
    ) -> Result<Message, Failure> {
        let connection = self.connection().await?;
        let call = connection.call_method(Some(service), path, Some(interface), method, body);
        timeout(ANSWER, call).await.map_err(|_| silent(service, ANSWER))?.map_err(failed)
    }

    /// Calls a method of systemd itself.
    ///
    /// # Errors
    /// What it said, in one line.
    pub async fn manager(
        &self,
        method: &str,
        body: &(impl Serialize + DynamicType),
    ) -> Result<Message, Failure> {
        self.call((MANAGER, MANAGER_PATH, MANAGER_INTERFACE), method, body).await
    }

    /// A property of a unit; `interface` is the last part of its name.
    ///
    /// # Errors
    /// There is no such unit, or what it has is of another type.
    pub async fn property<T: TryFrom<OwnedVariant>>(
        &self,
        unit: &str,
        interface: &str,
        property: &str,
    ) -> Result<T, Failure> {
        self.property_at(&object(unit), interface, property).await
    }

    async fn property_at<T: TryFrom<OwnedVariant>>(
        &self,
        path: &str,
        interface: &str,
        property: &str,
    ) -> Result<T, Failure> {
        let interface = format!("{MANAGER}.{interface}");
        let at = (MANAGER, path, "org.freedesktop.DBus.Properties");
        let answer = self.call(at, "Get", &(&*interface, property)).await?;
        let value: OwnedVariant = answer.body().deserialize().map_err(failed)?;
        value.try_into().map_err(|_| format!("{property} of {path} is of another type than it was"))
    }

    /// The name of the unit that a process belongs to.
    ///
    /// # Errors
    /// It belongs to none.
    pub async fn unit_of(&self, pid: u32) -> Result<String, Failure> {
        let answer = self.manager("GetUnitByPID", &(pid,)).await?;
        let path: OwnedObjectPath = answer.body().deserialize().map_err(failed)?;
        self.property_at(&path, "Unit", "Id").await
    }

    /// Calls a method that makes a job for `unit`, and waits until that is done.
    ///
    /// # Errors
    /// One line: systemd refuses, or the job failed.
    pub async fn job(
        &self,
        unit: &str,
        method: &str,
        body: &(impl Serialize + DynamicType),
    ) -> Result<(), Failure> {
        let (sender, mut ended) = mpsc::unbounded_channel();
        // Before the call: a job may be done before its answer is read.
        self.waiters.borrow_mut().insert(unit.to_owned(), sender);
        let job = async {
            let answer = self.manager(method, body).await?;
            let own: OwnedObjectPath = answer.body().deserialize().map_err(failed)?;
            loop {
                match ended.recv().await {
                    Some((job, result)) if job == own && result == "done" => return Ok(()),
                    Some((job, result)) if job == own => {
                        return Err(format!("{unit}: {result}: see journalctl -u '{unit}'"));
                    }
                    Some(_) => {}
                    None => return Err(format!("{unit}: somebody else starts it at the same time")),
                }
            }
        };
        let result = timeout(JOB, job).await.unwrap_or_else(|_| Err(silent(unit, JOB)));
        ended.close();
        self.waiters.borrow_mut().retain(|_, waiter| !waiter.is_closed());
        result
    }
}

fn silent(who: &str, within: Duration) -> Failure {
    format!("{who}: no answer within {} s", within.as_secs())
}

/// Tells those who wait that a job has ended. Ends with the connection.
async fn deliver(mut ends: MessageStream, waiters: Waiters) {
    while let Some(Ok(message)) = ends.next().await {
        let body = message.body();
        let Ok((_, job, unit, result)) = body.deserialize::<(u32, OwnedObjectPath, &str, &str)>() else {
            continue;
        };
        if let Some(waiter) = waiters.borrow().get(unit) {
            let _ = waiter.send((job, result.to_owned()));
        }
    }
}
