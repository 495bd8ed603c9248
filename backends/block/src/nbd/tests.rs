//! Against the servers that Debian has, and against one that lies.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use futures_util::future::{Either, join, join_all, select};
use imago::io_buffers::IoBuffer;
use proptest::prelude::*;
use tempfile::TempDir;

use super::client::{NbdDisk, Remote};
use crate::async_io::AsyncDisk;
use crate::async_io::reactor::Reactor;
use crate::uring::NewUring;
use crate::worker_command::Offer;

const MIB: usize = 1 << 20;

/// A server on a Unix socket in a directory of its own. It ends with this.
struct Server {
    dir: TempDir,
    command: Program,
    child: Option<Child>,
}

fn qemu_nbd(dir: &TempDir) -> Command {
    let mut command = Command::new("qemu-nbd");
    command.args([
        "--persistent",
        "--shared=8",
        "--format=raw",
        "--export-name=disk",
        "--discard=unmap",
        "--socket",
    ]);
    command.arg(dir.path().join("socket")).arg(dir.path().join("image"));
    command
}

fn nbdkit(dir: &TempDir) -> Command {
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(dir.path().join("socket"));
    command.arg("file").arg(dir.path().join("image"));
    command
}

type Program = fn(&TempDir) -> Command;

/// Each server, and what its export is called.
const SERVERS: [(Program, &str); 2] = [(qemu_nbd, "disk"), (nbdkit, "")];

impl Server {
    fn start(command: Program) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::File::create(dir.path().join("image")).unwrap().set_len(16 * MIB as u64).unwrap();
        let mut server = Self { dir, command, child: None };
        server.restart();
        server
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn restart(&mut self) {
        self.kill();
        let mut command = (self.command)(&self.dir);
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
            let _ = std::fs::remove_file(self.socket());
        }
    }

    fn connect(&self) -> OwnedFd {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            match UnixStream::connect(self.socket()) {
                Ok(stream) => return stream.into(),
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("image")).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn reactor() -> Arc<Reactor> {
    Arc::new(Reactor::new(NewUring::new(&[]).unwrap().enable().unwrap()))
}

fn disk(reactor: &Arc<Reactor>, export: &str, error_after: Option<u64>, lost: Box<dyn Fn(&str)>) -> NbdDisk {
    disk_behind(reactor, export, error_after, Duration::ZERO, lost)
}

/// One whose writes wait so long for those of a connection that was lost.
fn disk_behind(
    reactor: &Arc<Reactor>,
    export: &str,
    error_after: Option<u64>,
    fence: Duration,
    lost: Box<dyn Fn(&str)>,
) -> NbdDisk {
    let error_after = error_after.map(Duration::from_secs);
    NbdDisk::new(reactor, Remote { export: export.into(), writable: true, error_after, fence }, lost)
}

/// Runs a future with the disk's own work beside it.
fn run<T>(reactor: &Reactor, disk: &NbdDisk, work: impl Future<Output = T>) -> T {
    reactor.block_on(async {
        match select(std::pin::pin!(work), std::pin::pin!(disk.drive())).await {
            Either::Left((done, _)) => done,
            Either::Right((never, _)) => match never {},
        }
    })
}

async fn answer_of(reactor: &Reactor, answered: &Receiver<Result<(), String>>) -> Result<(), String> {
    loop {
        if let Ok(answer) = answered.try_recv() {
            return answer;
        }
        reactor.sleep(Duration::from_millis(1)).await;
    }
}

fn filled(byte: u8, len: usize) -> IoBuffer {
    let mut buffer = IoBuffer::new(len, 4096).unwrap();
    buffer.as_mut().into_slice().fill(byte);
    buffer
}

#[test]
fn each_server_stores_what_is_written_and_gives_it_back() {
    for (command, export) in SERVERS {
        let server = Server::start(command);
        let reactor = reactor();
        let disk = disk(&reactor, export, None, Box::new(|why| panic!("{why}")));
        let export = reactor.block_on(disk.connect(Some(server.connect()))).unwrap();
        assert_eq!(export.bytes, 16 * MIB as u64);
        run(&reactor, &disk, async {
            let writes =
                (0..64_u8).map(|n| disk.write(filled(n + 1, 65536), 65536, u64::from(n) << 16, n % 9 == 0));
            assert!(join_all(writes).await.into_iter().all(|(_, written)| written.is_ok()));
            disk.flush().await.unwrap();
            disk.write_zeroes(1 << 20, 65536, false).await.unwrap();
            disk.discard(2 << 20, 65536).await.unwrap();
            for n in 0..64_u8 {
                let (buffer, read) = disk.read(filled(0xff, 65536), 65536, u64::from(n) << 16).await;
                read.unwrap();
                let expected = if n == 16 { 0 } else { n + 1 };
                assert!(n == 32 || buffer.as_ref().into_slice().iter().all(|&byte| byte == expected), "{n}");
            }
        });
    }
}

#[test]
fn a_server_that_is_killed_and_comes_back_has_lost_and_doubled_nothing() {
    for (command, export) in SERVERS {
        killed_and_restarted(Server::start(command), export);
    }
}

fn killed_and_restarted(mut server: Server, export: &str) {
    let reactor = reactor();
    let losses = Rc::new(std::cell::Cell::new(0));
    let count = losses.clone();
    let disk = disk(&reactor, export, None, Box::new(move |_| count.set(count.get() + 1)));
    reactor.block_on(disk.connect(Some(server.connect()))).unwrap();
    let rounds = 5_u8;
    for round in 1..=rounds {
        run(&reactor, &disk, async {
            let writes = (0..200_u64).map(|n| disk.write(filled(round, 65536), 65536, n << 16, false));
            let killing = async {
                // In the midst of it: some are done, some are not.
                reactor.sleep(Duration::from_millis(u64::from(round) * 2)).await;
                server.restart();
                let (answer, answered) = sync_channel(1);
                disk.offer(Offer { socket: server.connect(), answer });
                answered
            };
            let (written, answered) = join(join_all(writes), killing).await;
            assert!(written.into_iter().all(|(_, written)| written.is_ok()));
            disk.flush().await.unwrap();
            assert_eq!(answered.try_recv().unwrap(), Ok(()));
        });
        let image = server.image();
        assert!(image[..200 << 16].iter().all(|&byte| byte == round), "round {round}");
        assert!(image[200 << 16..].iter().all(|&byte| byte == 0));
    }
    assert!(losses.get() <= rounds.into(), "told once for each loss: {}", losses.get());
}

#[test]
fn without_a_server_requests_fail_after_their_time_and_work_again_after_a_reconnect() {
    let mut server = Server::start(qemu_nbd);
    let reactor = reactor();
    let disk = disk(&reactor, "disk", Some(1), Box::new(|_| {}));
    reactor.block_on(disk.connect(Some(server.connect()))).unwrap();
    server.kill();
    let errno = run(&reactor, &disk, disk.read(filled(0, 512), 512, 0)).1.unwrap_err().raw_os_error();
    assert_eq!(errno, Some(libc::ENOTCONN));
    server.restart();
    run(&reactor, &disk, async {
        let (answer, answered) = sync_channel(1);
        disk.offer(Offer { socket: server.connect(), answer });
        assert_eq!(answer_of(&reactor, &answered).await, Ok(()));
        disk.read(filled(0, 512), 512, 0).await.1.unwrap();
    });
}

#[test]
fn an_export_that_is_not_there_or_has_shrunk_is_refused() {
    let mut server = Server::start(qemu_nbd);
    let reactor = reactor();
    let wrong = disk(&reactor, "other", None, Box::new(|_| {}));
    let error = reactor.block_on(wrong.connect(Some(server.connect()))).unwrap_err().to_string();
    assert!(error.contains("other"), "{error}");
    let disk = disk(&reactor, "disk", None, Box::new(|_| {}));
    reactor.block_on(disk.connect(Some(server.connect()))).unwrap();
    server.kill();
    std::fs::File::create(server.dir.path().join("image")).unwrap().set_len(8 * MIB as u64).unwrap();
    server.restart();
    let (answer, answered) = sync_channel(1);
    disk.offer(Offer { socket: server.connect(), answer });
    run(&reactor, &disk, async {
        assert!(answer_of(&reactor, &answered).await.unwrap_err().contains("shrunk"));
    });
}

/// Plays a server that answers the handshake with `bytes`, or an export of 1 MiB if there are none, and requests with
/// `replies`.
fn liar(bytes: Option<Vec<u8>>, replies: Vec<u8>) -> (OwnedFd, std::thread::JoinHandle<()>) {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let ours = UnixStream::connect(dir.path().join("socket")).unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    let thread =
        std::thread::spawn(move || {
            let _dir = dir;
            let mut hello = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
            let reply = |kind: u32, data: &[u8]| {
                let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
                bytes.extend([7, kind, data.len() as u32].map(u32::to_be_bytes).concat());
                bytes.extend(data);
                bytes
            };
            hello.extend(bytes.unwrap_or_else(|| {
                [reply(3, &[0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 5]), reply(1, &[])].concat()
            }));
            let _ = theirs.write_all(&hello);
            let _ = theirs.write_all(&replies);
            let _ = theirs.shutdown(std::net::Shutdown::Write);
            let mut rest = Vec::new();
            let _ = theirs.read_to_end(&mut rest);
        });
    (ours.into(), thread)
}

#[test]
fn a_server_that_lies_in_the_handshake_is_refused() {
    let reply = |kind: u32, len: u32| {
        let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        bytes.extend([7, kind, len].map(u32::to_be_bytes).concat());
        bytes
    };
    for bytes in [
        vec![0; 64],
        reply(3, u32::MAX),
        reply(1, 0),
        reply(2, 0),
        reply(0x8000_0006, 0),
        [reply(3, 12), vec![0; 12], reply(1, 0)].concat(),
        [reply(3, 14), vec![0, 3, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0], reply(1, 0)].concat(),
        [reply(3, 1), vec![0]].concat().repeat(40),
    ] {
        let reactor = reactor();
        let disk = disk(&reactor, "", None, Box::new(|_| {}));
        let (socket, thread) = liar(Some(bytes.clone()), Vec::new());
        assert!(reactor.block_on(disk.connect(Some(socket))).is_err(), "{bytes:?}");
        drop(disk);
        thread.join().unwrap();
    }
}

#[test]
fn a_server_that_answers_what_was_not_asked_is_hung_up_on() {
    for replies in [vec![0; 16], [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &[9; 8]].concat()] {
        let reactor = reactor();
        let told = Rc::new(std::cell::Cell::new(0));
        let count = told.clone();
        let disk = disk(
            &reactor,
            "",
            Some(0),
            Box::new(move |why| {
                assert!(why.contains("protocol"), "{why}");
                count.set(count.get() + 1);
            }),
        );
        let (socket, thread) = liar(None, replies);
        reactor.block_on(disk.connect(Some(socket))).unwrap();
        assert!(run(&reactor, &disk, disk.read(filled(0, 512), 512, 0)).1.is_err());
        assert_eq!(told.get(), 1);
        thread.join().unwrap();
    }
}

/// A server that hangs up on the first connection while it is about a write there, and finishes it when the newer
/// writes of the second one have come.
#[test]
fn a_write_that_a_server_finishes_after_its_connection_is_lost_does_not_come_over_a_newer_one() {
    const LATE: Duration = Duration::from_millis(400);
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let connect = || UnixStream::connect(dir.path().join("socket")).unwrap();
    let stored = Arc::new(std::sync::Mutex::new(Vec::new()));
    let serve = {
        let stored = stored.clone();
        move |mut socket: UnixStream, is_first: bool| {
            let opt = |kind: u32, data: &[u8]| {
                let head = 0x0003_e889_0455_65a9_u64.to_be_bytes();
                [&head[..], &[7, kind, data.len() as u32].map(u32::to_be_bytes).concat(), data].concat()
            };
            socket.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
            // The client's flags, and its one option for the default export.
            let mut head = [0; 4 + 16];
            socket.read_exact(&mut head).unwrap();
            let length = u32::from_be_bytes(head[16..].try_into().unwrap());
            socket.read_exact(&mut vec![0; length as usize]).unwrap();
            socket
                .write_all(&[opt(3, &[0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 1]), opt(1, &[])].concat())
                .unwrap();
            let mut request = [0; 28];
            while socket.read_exact(&mut request).is_ok() {
                let mut data = vec![0; u32::from_be_bytes(request[24..].try_into().unwrap()) as usize];
                socket.read_exact(&mut data).unwrap();
                let offset = u64::from_be_bytes(request[16..24].try_into().unwrap());
                if is_first {
                    drop(socket);
                    std::thread::sleep(LATE);
                    return stored.lock().unwrap().push((offset, data[0]));
                }
                stored.lock().unwrap().push((offset, data[0]));
                let reply = [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &request[8..16]].concat();
                socket.write_all(&reply).unwrap();
            }
        }
    };
    let clients = [connect(), connect()];
    let servers = [true, false].map(|is_first| {
        let (socket, serve) = (listener.accept().unwrap().0, serve.clone());
        std::thread::spawn(move || serve(socket, is_first))
    });
    let [first, second] = clients.map(OwnedFd::from);
    let reactor = reactor();
    let disk = disk_behind(&reactor, "", None, LATE * 2, Box::new(|_| {}));
    reactor.block_on(disk.connect(Some(first))).unwrap();
    run(&reactor, &disk, async {
        let (answer, _answered) = sync_channel(1);
        let write = |byte, offset| disk.write(filled(byte, 512), 512, offset, false);
        let offer = async {
            reactor.sleep(Duration::from_millis(50)).await;
            disk.offer(Offer { socket: second, answer });
        };
        join(write(1, 0), offer).await.0.1.unwrap();
        // Others need not wait.
        let began = Instant::now();
        write(3, 1024).await.1.unwrap();
        assert!(began.elapsed() < LATE, "{:?}", began.elapsed());
        write(2, 0).await.1.unwrap();
        assert!(began.elapsed() >= LATE, "{:?}", began.elapsed());
    });
    drop(disk);
    servers.into_iter().for_each(|server| server.join().unwrap());
    let stored = stored.lock().unwrap().clone();
    let of_sector: Vec<_> = stored.iter().filter(|(offset, _)| *offset == 0).map(|(_, byte)| *byte).collect();
    assert_eq!(of_sector.last(), Some(&2), "{stored:?}");
    assert_eq!(of_sector.iter().filter(|byte| **byte == 1).count(), 2, "{stored:?}");
}

/// What a server may send: replies that could be meant, and bytes that are none.
fn reply() -> impl Strategy<Value = Vec<u8>> {
    let proper = (prop_oneof![Just(0), 1..4_u32, Just(108)], 0..8_u64).prop_map(|(error, cookie)| {
        [&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
    });
    prop_oneof![3 => proper, 1 => proptest::collection::vec(any::<u8>(), 0..600)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_server_says_every_request_is_answered_once(
        replies in proptest::collection::vec(reply(), 0..10),
    ) {
        let reactor = reactor();
        let disk = disk(&reactor, "", Some(0), Box::new(|_| {}));
        let (socket, thread) = liar(None, replies.concat());
        reactor.block_on(disk.connect(Some(socket))).unwrap();
        run(&reactor, &disk, async {
            let reads = join_all((0..3_u64).map(|n| disk.read(filled(0, 512), 512, n << 9)));
            let writes = join_all((0..3_u64).map(|n| disk.write(filled(1, 512), 512, n << 9, false)));
            let ((reads, writes), _) = join(join(reads, writes), disk.flush()).await;
            assert_eq!((reads.len(), writes.len()), (3, 3));
        });
        drop(disk);
        thread.join().unwrap();
    }
}
