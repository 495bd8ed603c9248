//! One host for each test: a network namespace, a run directory, the real programs, and what they must leave behind:
//! nothing.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "only tests use it")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

/// The folder with the programs: `DOMUS_BIN`, or built now.
pub fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(folder) = std::env::var_os("DOMUS_BIN") {
            return folder.into();
        }
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--profile", "lab", "--bins"]);
        for package in
            ["dom0", "domus", "domu-runner", "domus-block", "domus-net", "domus-console", "domus-switch"]
        {
            cargo.args(["--package", package]);
        }
        let built = cargo.current_dir(root).status();
        assert!(built.is_ok_and(|status| status.success()), "the programs of Domus do not build");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        target.join("lab")
    })
}

/// A host of its own.
pub struct Host {
    dir: TempDir,
    dom0: Option<Child>,
    /// Programs of its own, for tests that take some away.
    own_programs: Option<PathBuf>,
}

/// What there is before and after.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    pub links: String,
    pub processes: Vec<String>,
    pub domains: Vec<String>,
}

impl Host {
    /// Makes it. Needs root, and with `guests` a /dev/kvm that runs the mini guest: any does.
    pub fn new(guests: bool) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "not run: this test makes taps and namespaces, which needs root"
        );
        assert!(
            !guests || Path::new("/dev/kvm").exists(),
            "not run: this test starts guests, which needs /dev/kvm"
        );
        programs();
        // For this thread and the processes it starts.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let host = Self { dir: tempfile::tempdir().unwrap(), dom0: None, own_programs: None };
        fs::write(host.path("mini.elf"), mini_guest::IMAGE).unwrap();
        host.ip(&["link", "add", "br0", "type", "bridge"]);
        host.ip(&["link", "set", "br0", "up"]);
        host
    }

    /// Makes it, with the service running.
    pub fn with_service(guests: bool) -> Self {
        let mut host = Self::new(guests);
        host.start_service();
        host
    }

    /// Makes it, with the service running on copies of the programs.
    pub fn with_own_programs() -> Self {
        let mut host = Self::new(true);
        let folder = host.path("libexec");
        fs::create_dir(&folder).unwrap();
        for program in ["domu-runner", "domus-block", "domus-net", "domus-console", "domus-switch"] {
            fs::copy(programs().join(program), folder.join(program)).unwrap();
        }
        host.own_programs = Some(folder);
        host.start_service();
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    pub fn ip(&self, args: &[&str]) -> String {
        let out = Command::new("ip").args(args).output().unwrap();
        assert!(out.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    pub fn start_service(&mut self) {
        self.start_service_with(&[]);
    }

    /// Starts the service with more arguments.
    pub fn start_service_with(&mut self, args: &[&str]) {
        assert!(self.spawn_service(None, args), "dom0 ended before it served");
    }

    /// Starts a service that kills itself at its `fault`-th step, if that is given (a build with debug
    /// assertions does); false if it did so
    /// before it served.
    pub fn start_faulty_service(&mut self, fault: Option<u32>) -> bool {
        self.spawn_service(fault, &[])
    }

    /// Starts the service with another standard error than the one that the tests read.
    pub fn start_service_saying(&mut self, stderr: Stdio) {
        self.dom0 = Some(self.service_command().stderr(stderr).spawn().unwrap());
        let socket = self.run_dir().join("dom0.sock");
        self.until("dom0 serves", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    }

    fn service_command(&self) -> Command {
        let mut command = Command::new(programs().join("dom0"));
        command
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--config-dir")
            .arg(self.path("etc"))
            .arg("--dump-dir")
            .arg(self.path("dump"))
            .arg("--log-dir")
            .arg(self.path("log"))
            .args(["--grace", "1"])
            .args(self.own_programs.iter().flat_map(|folder| ["--libexec-dir".as_ref(), folder.as_os_str()]));
        command
    }

    fn spawn_service(&mut self, fault: Option<u32>, args: &[&str]) -> bool {
        let mut child = self
            .service_command()
            .envs(fault.map(|n| ("DOMUS_FAULT", n.to_string())))
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It says on standard error when it serves; the rest is passed on to the test's output.
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let serves = lines.by_ref().map_while(Result::ok).any(|line| {
            eprintln!("dom0: {line}");
            line.starts_with("dom0 serves ")
        });
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("dom0: {line}")));
        self.dom0 = Some(child);
        serves
    }

    pub fn service(&mut self) -> &mut Child {
        self.dom0.as_mut().unwrap()
    }

    /// A folder with the programs, but for one that is `script` instead, or missing without one.
    pub fn programs_but(&self, replaced: &str, script: &str) -> String {
        let dir = self.path("libexec");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        for program in ["domu-runner", "domus-block", "domus-net", "domus-console"] {
            std::os::unix::fs::symlink(programs().join(program), dir.join(program)).unwrap();
        }
        fs::remove_file(dir.join(replaced)).unwrap();
        if !script.is_empty() {
            fs::write(dir.join(replaced), script).unwrap();
            fs::set_permissions(dir.join(replaced), fs::Permissions::from_mode(0o755)).unwrap();
        }
        dir.display().to_string()
    }

    /// Ends the service, and its domains with it.
    pub fn stop_service(&mut self) {
        self.end_service(nix::sys::signal::SIGINT);
    }

    /// Ends the service in the orderly way; its domains go on.
    pub fn leave_service(&mut self) {
        self.end_service(nix::sys::signal::SIGTERM);
    }

    fn end_service(&mut self, how: nix::sys::signal::Signal) {
        let mut child = self.dom0.take().unwrap();
        signal(child.id(), how);
        assert!(child.wait().unwrap().success(), "dom0 did not end well");
    }

    /// Kills the service.
    pub fn kill_service(&mut self) {
        let mut child = self.dom0.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(programs().join("domus"));
        command
            .arg("--run-dir")
            .arg(self.run_dir())
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    pub fn domus(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed; the result is its output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.domus(args);
        assert!(out.status.success(), "domus {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs a command that must fail with status 1; the result is its one line, without the name of the program.
    #[track_caller]
    pub fn refused(&self, args: &[&str]) -> String {
        let out = self.domus(args);
        let text = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(1), "domus {args:?}: {text}");
        let mut lines: Vec<&str> =
            text.lines().filter(|line| !line.starts_with("domains run without ")).collect();
        assert_eq!(lines.len(), 1, "domus {args:?} said:\n{text}");
        lines.remove(0).strip_prefix("domus: ").expect("the line begins with the program's name").into()
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Writes the config of a mini guest. `more` is JSON to add, beginning with a comma.
    pub fn guest(&self, name: &str, cmdline: &str, more: &str) -> String {
        let file = format!("{name}.json");
        let text = format!(
            r#"{{ "name": "{name}", "memory": "32MiB",
                  "boot": {{ "kernel": "mini.elf", "cmdline": "{cmdline}" }}{more} }}"#
        );
        self.write(&file, &text);
        file
    }

    /// What the service answers to one Varlink call, as any client would make it.
    pub fn call(&self, text: &str) -> serde_json::Value {
        let mut stream = UnixStream::connect(self.run_dir().join("dom0.sock")).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream.write_all(&[0]).unwrap();
        let mut answer = Vec::new();
        BufReader::new(stream).read_until(0, &mut answer).unwrap();
        assert_eq!(answer.pop(), Some(0));
        serde_json::from_slice(&answer).unwrap()
    }

    /// The domains as `list --json` shows them.
    pub fn list(&self) -> Vec<serde_json::Value> {
        serde_json::from_str(&self.ok(&["list", "--json"])).unwrap()
    }

    /// The disks of a domain as `block-list --json` shows them.
    pub fn disks(&self, name: &str) -> Vec<serde_json::Value> {
        serde_json::from_str(&self.ok(&["block-list", name, "--json"])).unwrap()
    }

    /// The process that serves a domain's disks, once there is one that is not `old`.
    pub fn block_pid(&self, name: &str, old: u64) -> u64 {
        let mut pid = 0;
        self.until("a new backend", || {
            pid = self.disks(name)[0]["backend_pid"].as_u64().unwrap_or(0);
            pid != 0 && pid != old
        });
        pid
    }

    /// Makes an empty image and returns the JSON of a disk on it. `more` is JSON to add, beginning with a comma.
    pub fn disk(&self, id: &str, mib: u64, more: &str) -> String {
        let path = self.path(&format!("{id}.img"));
        fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
        format!(r#"{{ "id": "{id}", "path": "{}"{more} }}"#, path.display())
    }

    pub fn domain(&self, name: &str) -> Option<serde_json::Value> {
        self.list().into_iter().find(|domain| domain["name"] == name)
    }

    /// Waits until the condition holds.
    #[track_caller]
    pub fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(Instant::now() < deadline, "{what} did not come true");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The links, this host's processes of Domus, and the directories of domains.
    pub fn traces(&self) -> Traces {
        let mut domains: Vec<String> = fs::read_dir(self.run_dir().join("domains"))
            .map(|entries| {
                entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
            })
            .unwrap_or_default();
        domains.sort();
        let links = self.ip(&["-o", "link", "show"]);
        let names = links.lines().filter_map(|line| line.split(": ").nth(1)).collect::<Vec<_>>().join(" ");
        Traces { links: names, processes: self.processes(), domains }
    }

    /// Command lines of the processes of domains here.
    pub fn processes(&self) -> Vec<String> {
        let marker = self.run_dir().join("domains").display().to_string();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(&marker))
            .collect()
    }

    /// Every process of this host's.
    pub fn pids(&self) -> Vec<u32> {
        let marker = self.run_dir().display().to_string();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let ours = processes.filter(|process| {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&marker)
        });
        ours.filter_map(|process| process.file_name().to_str()?.parse().ok()).collect()
    }

    /// The process whose control socket is this one of a domain's.
    pub fn pid_of(&self, domain: &str, socket: &str) -> Option<u32> {
        Self::pid_at(&self.run_dir().join("domains").join(domain).join(socket))
    }

    /// The process of a switch.
    pub fn pid_of_switch(&self, name: &str) -> Option<u32> {
        Self::pid_at(&self.run_dir().join("switches").join(name).join("switch.sock"))
    }

    fn pid_at(control: &Path) -> Option<u32> {
        let control = control.display().to_string();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let has = |process: &fs::DirEntry| {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == control.as_bytes())
        };
        processes.filter(has).find_map(|process| process.file_name().to_str()?.parse().ok())
    }

    /// Makes the run directory so that it can be compared.
    pub fn touch_run_dir(&self) {
        fs::create_dir_all(self.run_dir().join("domains")).unwrap();
        fs::set_permissions(self.run_dir().join("domains"), PermissionsExt::from_mode(0o700)).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut child) = self.dom0.take() {
            end(&mut child);
        }
        // Those of a service that was killed, where a test has failed.
        self.pids().into_iter().for_each(|pid| signal(pid, nix::sys::signal::SIGKILL));
    }
}

/// Ends a process that takes a second signal as a wish to hurry.
pub fn end(child: &mut Child) {
    while child.try_wait().unwrap().is_none() {
        signal(child.id(), nix::sys::signal::SIGINT);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Everything a domain's console prints, to be waited for.
pub struct Console {
    client: Child,
    receiver: std::sync::mpsc::Receiver<Vec<u8>>,
    text: String,
}

impl Console {
    pub fn attach(host: &Host, name: &str) -> Self {
        let mut client =
            host.command(&["console", name]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = client.stdout.take().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = std::io::Read::read(&mut stdout, &mut buffer) {
                let _ = sender.send(buffer[..count].to_vec());
            }
        });
        Self { client, receiver, text: String::new() }
    }

    /// Types a line; what was printed before is forgotten.
    pub fn send(&mut self, line: &str) {
        use std::io::Write;
        self.has("");
        self.text.clear();
        self.client.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// True if it has printed a line with this by now.
    pub fn has(&mut self, wanted: &str) -> bool {
        while let Ok(bytes) = self.receiver.try_recv() {
            self.text += &String::from_utf8_lossy(&bytes);
        }
        assert!(!self.text.contains("mini: failed"), "{}", self.text);
        self.text.split_inclusive('\n').any(|line| line.contains(wanted) && line.ends_with('\n'))
    }

    /// Waits until it has printed a line with this, and returns the last one.
    #[track_caller]
    pub fn wait(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !self.has(wanted) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok(bytes) => self.text += &String::from_utf8_lossy(&bytes),
                Err(error) => panic!("{error}: {wanted:?} was not printed, but\n{}", self.text),
            }
        }
        self.text.lines().rfind(|line| line.contains(wanted)).unwrap_or_default().trim().into()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

pub fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal);
    // One thread takes the signal, and the others go on until it has.
    let deadline = Instant::now() + Duration::from_secs(5);
    while signal == nix::sys::signal::Signal::SIGSTOP && !is_stopped(pid) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// True if each thread of a process is stopped, or has ended.
fn is_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let states = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    states
        .into_iter()
        .all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 'Z', 'X'])))
}
