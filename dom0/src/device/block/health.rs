//! What is amiss with a disk that is served: requests that its storage does not finish, and requests that fail.
//!
//! Fed with the counters of its backend every few seconds, which costs the requests nothing.

use std::time::Duration;

use nix::errno::Errno;
use shared_abi::DeviceId;
use shared_abi::control::{DiskStatistics, FailedRequest};
use tokio::time::Instant;

use crate::value::text::one_line;
use crate::value::trouble::Trouble;

/// A request that the storage has had for so long is told of.
const SLOW: Duration = Duration::from_secs(5);

/// Requests that failed are told of for so long after the last one.
const REMEMBERED: Duration = Duration::from_secs(600);

/// How a disk does.
#[derive(Debug, Default)]
pub struct Health {
    /// Since when the storage has had the oldest request that it has not finished.
    stuck: Option<Instant>,
    /// Requests that its backend has seen fail.
    errors: u64,
    failing: Option<Failing>,
}

/// Requests that fail.
#[derive(Debug)]
struct Failing {
    since: Instant,
    /// When the last one did, and which it was as far as that is known.
    last: Instant,
    request: Option<FailedRequest>,
    count: u64,
}

impl Health {
    /// Looks at what the backend has counted since it started.
    pub fn look(&mut self, seen: &DiskStatistics, now: Instant) {
        self.stuck = seen.oldest_ms.and_then(|age| now.checked_sub(Duration::from_millis(age)));
        let ops = [&seen.read, &seen.write, &seen.flush, &seen.discard];
        let errors = ops.iter().map(|op| op.errors).sum();
        // Another backend counts from 0.
        let more = if errors >= self.errors { errors - self.errors } else { errors };
        self.errors = errors;
        self.failing.take_if(|failing| now - failing.last >= REMEMBERED);
        if more > 0 {
            let failing =
                self.failing.get_or_insert(Failing { since: now, last: now, request: None, count: 0 });
            failing.last = now;
            failing.request.clone_from(&seen.last_error);
            failing.count += more;
        }
    }

    /// What is amiss at this moment.
    pub fn troubles(&self, disk: &DeviceId, now: Instant) -> Vec<Trouble> {
        let layer = format!("disk {disk}");
        let stuck = self.stuck.filter(|since| now - *since >= SLOW).map(|since| Trouble {
            layer: layer.clone(),
            since: Some(since),
            cause: "a request of it is not finished by its storage".into(),
            next: "see what its file system, its device or its server waits for: the guest waits as long"
                .into(),
        });
        let failing = self.failing.as_ref().map(|failing| Trouble {
            layer: layer.clone(),
            since: Some(failing.since),
            cause: failing.say(),
            next: "the guest was told; see whether its image is whole, and what the host's log says".into(),
        });
        stuck.into_iter().chain(failing).collect()
    }
}

impl Failing {
    fn say(&self) -> String {
        let count = self.count;
        match &self.request {
            None => format!("{count} request(s) have failed"),
            Some(FailedRequest { operation, offset, errno }) => format!(
                "{count} request(s) have failed, the last one a {} at byte {offset}: {} (errno {errno})",
                one_line(operation),
                Errno::from_raw(*errno).desc()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use shared_abi::control::OpStatistics;

    use super::*;

    fn seen(oldest_ms: Option<u64>, errors: u64) -> DiskStatistics {
        let last_error = Some(FailedRequest { operation: "read".into(), offset: 8192, errno: 5 });
        let read = OpStatistics { errors, ..Default::default() };
        DiskStatistics { oldest_ms, last_error, read, ..Default::default() }
    }

    #[test]
    fn what_waits_and_what_fails_is_told_and_forgotten_when_it_is_over() {
        let disk: DeviceId = "root".parse().unwrap();
        let now = Instant::now() + Duration::from_secs(3600);
        let mut health = Health::default();
        health.look(&seen(Some(4000), 0), now);
        assert_eq!(health.troubles(&disk, now), []);
        health.look(&seen(Some(6000), 0), now);
        let troubles = health.troubles(&disk, now);
        assert!(troubles[0].cause.contains("not finished"), "{troubles:?}");
        assert_eq!(troubles[0].since, Some(now - Duration::from_secs(6)));
        health.look(&seen(None, 3), now);
        // A backend that has taken its place has two of its own.
        health.look(&seen(None, 2), now);
        let [trouble] = &health.troubles(&disk, now)[..] else { panic!() };
        assert_eq!(
            trouble.cause,
            "5 request(s) have failed, the last one a read at byte 8192: I/O error (errno 5)"
        );
        health.look(&seen(None, 2), now + REMEMBERED);
        assert_eq!(health.troubles(&disk, now + REMEMBERED), []);
    }
}
