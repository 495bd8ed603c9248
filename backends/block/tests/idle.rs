//! A real `domus-block` whose guest asks for nothing: it does nothing at all, however busy it was before.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::*;
use domus_driver::block::*;

/// How often each thread was switched to, whether it wanted or not. Without the kernel's own threads, of which io_uring
/// keeps the last one and looks after it every five seconds.
fn switches(pid: u32) -> BTreeMap<String, Vec<String>> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let lines = text.lines().filter(|line| line.contains("ctxt_switches")).map(str::to_owned);
        (task.file_name().to_string_lossy().into_owned(), lines.collect())
    };
    let is_ours = |task: &std::fs::DirEntry| {
        !std::fs::read_to_string(task.path().join("comm")).unwrap_or_default().starts_with("iou-wrk")
    };
    tasks.flatten().filter(is_ours).map(of).collect()
}

#[test]
fn an_idle_disk_wakes_no_thread_in_ten_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let mut backend = Backend::start(dir.path(), &path, &["--queues", "4"]);
    let mut driver = Driver::new(backend.connect(), 4, F_FLUSH);
    // Busy enough for every queue to look out for more.
    for round in 0..200 {
        for queue in 0..4 {
            let kind = if round % 2 == 0 { T_IN } else { T_OUT };
            assert_eq!(driver.request(queue, kind, round, &[(DATA, 512, kind == T_IN)]).0, S_OK);
        }
    }
    let pid = backend.process.pid();
    let start = Instant::now();
    let mut before = switches(pid);
    loop {
        sleep(Duration::from_millis(200));
        let now = switches(pid);
        if now == before {
            break;
        }
        before = now;
        assert!(start.elapsed() < Duration::from_secs(10), "it does not come to rest");
    }
    assert!(before.len() >= 5 && before.values().all(|lines| lines.len() == 2), "{before:?}");
    sleep(Duration::from_secs(10));
    assert_eq!(switches(pid), before);
    assert_eq!(driver.sector(3, 200), 200);
}
