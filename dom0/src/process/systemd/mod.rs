//! systemd starts the processes, as units of their own: `domus-block@web1.service` in `domus-web1.slice`.
//!
//! ```text
//!   free name ─▶ its environment written ─▶ StartUnit ─▶ job done ─▶ MainPID ─▶ pidfd ─▶ Process
//!      ▲                                                                                   │ ended, told how, reaped
//!      └──────────────────────────────── UnrefUnit: systemd forgets it ◀───────────────────┘
//! ```
//!
//! dom0 ends and restarts the processes itself, by their pidfds. So the units have no `Restart=` and are `PartOf=` no
//! other unit: dom0's own stop and start do not affect them. Their output goes to the journal. Helper programs are
//! transient units in the same slice.

mod bus;
mod machined;
mod release;
mod unit;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::unistd::Pid;
use shared_abi::{DomainName, Role};
use zbus::Variant;

use crate::host::pidfd::open_pidfd;
use crate::host::programs;
use crate::process::cgroup::{memory_limit, task_limit};
use crate::process::confinement::{CAP_SETGID, CAP_SETPCAP, CAP_SETUID, Confinement};
use crate::process::systemd::bus::{Bus, Failure};
use crate::process::systemd::machined::Machines;
use crate::process::systemd::release::{Release, Releases};
use crate::process::systemd::unit::{Unit, Used};
use crate::process::{
    Adopting, HelperProgram, Launch, Limits, Process, SettingCpuLimits, Starting, Supervisor, SupervisorError,
};
use crate::value::names::{self, template};

/// Where the installed programs are; the units say the same of their directories.
const PROGRAMS: &str = "/usr/libexec/domus";

/// Where the environment of a unit is, by its name. Its own directory, so that nobody else writes there.
pub const ENVIRONMENTS: &str = "/run/domus/units";

/// Where systemd looks for units that are installed.
const UNIT_PLACES: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// Properties of a transient unit.
type Properties<'a> = Vec<(&'a str, Variant<'a>)>;

/// Starts processes as units of systemd's.
#[derive(Debug)]
pub struct Systemd {
    bus: Rc<Bus>,
    used: Used,
    releases: Releases,
    machines: Machines,
    /// Domains whose slice has been made.
    slices: RefCell<BTreeSet<DomainName>>,
    /// A slice has been given up, and systemd may not know yet.
    leaving: Cell<bool>,
}

/// True if this process is the service of an installed package: systemd has started it, and knows the children's units.
pub fn is_at_hand() -> bool {
    let asked = ["INVOCATION_ID", "NOTIFY_SOCKET"].iter().all(|name| std::env::var_os(name).is_some());
    asked && Path::new("/run/systemd/system").exists() && missing_unit().is_none()
}

/// The first template that is not installed.
fn missing_unit() -> Option<String> {
    let templates = Role::ALL.into_iter().map(|role| format!("{}@.service", template(role)));
    let there = |unit: &String| UNIT_PLACES.iter().any(|place| Path::new(place).join(unit).exists());
    templates.into_iter().find(|unit| !there(unit))
}

impl Systemd {
    /// Must be called in a `LocalSet`.
    ///
    /// # Errors
    /// One line: the units are not installed, or their environments cannot be written.
    pub fn new() -> Result<Self, String> {
        if let Some(unit) = missing_unit() {
            return Err(format!(
                "--supervisor systemd: {unit} is not installed: install the package domus, or use direct"
            ));
        }
        let made = fs::DirBuilder::new().recursive(true).create(ENVIRONMENTS);
        made.map_err(|error| format!("--supervisor systemd: cannot make {ENVIRONMENTS}: {error}"))?;
        let bus = Rc::new(Bus::default());
        let releases = Releases::start(bus.clone());
        Ok(Self {
            machines: Machines::new(bus.clone()),
            bus,
            used: Used::default(),
            releases,
            slices: RefCell::default(),
            leaving: Cell::new(false),
        })
    }

    async fn start_now(&self, launch: Launch<'_>) -> Result<Process, Failure> {
        if let Some(limits) = launch.limits {
            self.slice(limits).await?;
        }
        let template = template(launch.role);
        let whom = launch.whom.strip_prefix("switch ").unwrap_or(launch.whom);
        for (n, name) in names::candidates(&template, whom) {
            let Some(unit) = self.take(&name) else { continue };
            // Loaded from here on, so that it can be asked how it ended.
            self.bus.manager("RefUnit", &(&*name,)).await?;
            if !unit.is_idle().await? {
                continue;
            }
            let environment = Environment::write(&names::environment(&template, whom, n), launch)?;
            self.bus.job(&name, "StartUnit", &(&*name, "replace")).await?;
            drop(environment);
            let process = self.process(unit).await?;
            if let (Role::Runner, Some(Limits { domain, uuid, .. })) = (launch.role, launch.limits) {
                self.machines.register(domain.as_str(), uuid, process.pid());
            }
            return Ok(process);
        }
        Err(format!(
            "{template}: all its units for {whom} are in use: see systemctl list-units '{template}@*'"
        ))
    }

    fn take(&self, name: &str) -> Option<Unit> {
        Unit::take(&self.bus, &self.used, &self.releases, name)
    }

    /// The process of a unit that has just been started.
    async fn process(&self, unit: Unit) -> Result<Process, Failure> {
        let name = unit.name().to_owned();
        let main = async || self.bus.property::<u32>(&name, "Service", "MainPID").await;
        let gone = || format!("{name} ended at once: see journalctl -u '{name}'");
        let pid = main().await?;
        let raw = i32::try_from(pid).ok().filter(|pid| *pid > 1).ok_or_else(gone)?;
        let pidfd = open_pidfd(Pid::from_raw(raw)).map_err(|_| gone())?;
        // While systemd calls it the main process it has not waited for it, so its number is nobody else's.
        if main().await? != pid {
            return Err(gone());
        }
        let mut process = Process::new(Pid::from_raw(raw), pidfd).map_err(|error| error.to_string())?;
        process.witness = Some(Box::new(unit));
        Ok(process)
    }

    /// The unit of a process that an earlier dom0 had started.
    async fn unit_of(&self, pid: Pid) -> Option<Unit> {
        let name = self.bus.unit_of(pid.as_raw().unsigned_abs()).await.ok()?;
        // A child of a dom0 that started its processes itself is in that dom0's own unit.
        let unit = self.take(name.strip_prefix("domus-").map(|_| &*name)?)?;
        self.bus.manager("RefUnit", &(&*name,)).await.ok()?;
        Some(unit)
    }

    /// Makes the slice of a domain with its limits, if this has not done so yet.
    async fn slice(&self, Limits { domain, memory, vcpus, .. }: Limits<'_>) -> Result<(), Failure> {
        if self.slices.borrow().contains(domain) {
            return Ok(());
        }
        if self.leaving.replace(false) {
            self.releases.passed_on().await;
        }
        let slice = names::slice(domain.as_str());
        let limits = || {
            let memory = Variant::from(memory_limit(memory));
            vec![("MemoryMax", memory), ("TasksMax", Variant::from(u64::from(task_limit(vcpus))))]
        };
        let mut all: Properties<'_> = vec![("Description", Variant::from(format!("Domain {domain}")))];
        all.extend(limits());
        if let Err(error) = self.transient(&slice, all).await {
            // One that is there was left by another dom0.
            let set = self.bus.manager("SetUnitProperties", &(&*slice, true, limits())).await;
            set.map_err(|_| error)?;
        }
        self.slices.borrow_mut().insert(domain.clone());
        Ok(())
    }

    async fn transient(&self, unit: &str, properties: Properties<'_>) -> Result<(), Failure> {
        let none: Vec<(&str, Properties<'_>)> = Vec::new();
        self.bus.job(unit, "StartTransientUnit", &(unit, "fail", properties, none)).await
    }

    async fn start_helper_now(&self, helper: HelperProgram<'_>) -> Result<Process, Failure> {
        let program = helper.program.file_name().unwrap_or_default().to_string_lossy();
        let own = [utf8(helper.program)?.to_owned()].into_iter().chain(helper.args.iter().cloned());
        let argv: Vec<String> = becomes(&helper.confinement)?.into_iter().chain(own).collect();
        let path = argv[0].clone();
        let slice = helper.domain.map_or("domus.slice".into(), |domain| names::slice(domain.as_str()));
        let mut error = String::new();
        for (_, name) in names::candidates(&format!("domus-{program}"), helper.whom) {
            let Some(unit) = self.take(&name) else { continue };
            let mut properties: Properties<'_> = vec![
                ("Description", Variant::from(format!("Domus: {program} of {}", helper.whom))),
                ("Slice", Variant::from(&*slice)),
                ("Type", Variant::from("exec")),
                ("CollectMode", Variant::from("inactive-or-failed")),
                ("AddRef", Variant::from(true)),
                ("ExecStart", Variant::from(vec![(path.clone(), argv.clone(), false)])),
                // As the templates have it: at the host's shutdown guests need it until they are off.
                ("Before", Variant::from(vec!["domus-guests.service"])),
            ];
            properties.extend(confined(&helper)?);
            if let Some(gives) = helper.gives {
                properties.push(("StandardInputFileDescriptor", Variant::from(zbus::Fd::from(gives))));
            }
            match self.transient(&name, properties).await {
                Ok(()) => return self.process(unit).await,
                Err(why) => error = why,
            }
        }
        Err(error)
    }

    async fn weigh_now(
        &self,
        domain: &DomainName,
        weight: Option<u32>,
        cap: Option<u32>,
    ) -> Result<(), Failure> {
        let mut properties: Properties<'_> = Vec::new();
        properties.extend(weight.map(|weight| ("CPUWeight", Variant::from(u64::from(weight)))));
        // Microseconds in a second; the greatest number is none.
        properties.extend(cap.map(|cap| {
            let quota = if cap == 0 { u64::MAX } else { u64::from(cap) * 10_000 };
            ("CPUQuotaPerSecUSec", Variant::from(quota))
        }));
        let slice = names::slice(domain.as_str());
        self.bus.manager("SetUnitProperties", &(&*slice, true, properties)).await.map(drop)
    }
}

/// System calls that no helper makes.
const FORBIDDEN: [&str; 9] = [
    "@clock",
    "@cpu-emulation",
    "@debug",
    "@module",
    "@obsolete",
    "@raw-io",
    "@reboot",
    "@resources",
    "@swap",
];

/// What `setpriv` needs to make a process another user's, which that has not any more.
const TO_BECOME: u64 = 1 << CAP_SETGID | 1 << CAP_SETUID | 1 << CAP_SETPCAP;

/// The words before a program's own by which it gets its user and its capabilities. systemd's own way refuses a user
/// whom no directory knows.
fn becomes(confinement: &Confinement<'_>) -> Result<Vec<String>, Failure> {
    let Some(uid) = confinement.uid else { return Ok(Vec::new()) };
    let setpriv = programs::find("setpriv", "util-linux").map_err(|error| error.to_string())?;
    let some = confinement.capabilities.iter().map(|number| format!(",+cap_{number}"));
    let capabilities = format!("-all{}", some.collect::<String>());
    Ok(vec![
        utf8(&setpriv)?.to_owned(),
        format!("--reuid={uid}"),
        format!("--regid={uid}"),
        "--clear-groups".into(),
        format!("--inh-caps={capabilities}"),
        format!("--ambient-caps={capabilities}"),
        format!("--bounding-set={capabilities}"),
        "--".into(),
    ])
}

/// What holds a helper: the same as in the templates, but for what it needs.
fn confined<'a>(helper: &HelperProgram<'a>) -> Result<Properties<'a>, Failure> {
    let Confinement { uid, families, namespaces, calls, writes, memory, tasks, .. } = helper.confinement;
    let to_become = if uid.is_some() { TO_BECOME } else { 0 };
    let capabilities = helper.confinement.capability_bits() | to_become;
    let texts = |texts: Vec<&'a str>| Variant::from(texts);
    let mut allowed = vec!["@system-service"];
    allowed.extend(calls);
    let mut properties: Properties<'a> = vec![
        ("CapabilityBoundingSet", Variant::from(capabilities)),
        ("NoNewPrivileges", Variant::from(true)),
        ("RestrictNamespaces", Variant::from(namespaces)),
        ("RestrictAddressFamilies", Variant::from((true, families.to_vec()))),
        ("SystemCallArchitectures", texts(vec!["native"])),
        ("SystemCallErrorNumber", Variant::from(libc::EPERM)),
        ("SystemCallFilter", Variant::from((true, allowed))),
        ("SystemCallFilter", Variant::from((false, FORBIDDEN.to_vec()))),
        ("MemoryMax", Variant::from(memory)),
        ("TasksMax", Variant::from(u64::from(tasks))),
        ("OOMScoreAdjust", Variant::from(0_i32)),
        // What it says is about what guests do: the journal is not theirs to fill.
        ("LogRateLimitIntervalUSec", Variant::from(3_600_000_000_u64)),
        ("LogRateLimitBurst", Variant::from(64_u32)),
        ("ProtectSystem", Variant::from("strict")),
        ("ProtectHome", Variant::from("yes")),
        ("ProtectProc", Variant::from("invisible")),
        ("UMask", Variant::from(0o077_u32)),
        ("KeyringMode", Variant::from("private")),
        ("DevicePolicy", Variant::from("closed")),
    ];
    let switches = [
        "ProtectClock",
        "ProtectHostname",
        "ProtectControlGroups",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "PrivateDevices",
        "PrivateTmp",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "LockPersonality",
        "MemoryDenyWriteExecute",
    ];
    properties.extend(switches.map(|switch| (switch, Variant::from(true))));
    if let Some(writes) = writes {
        properties.push(("ReadWritePaths", texts(vec![utf8(writes)?])));
    }
    Ok(properties)
}

/// The file that a unit reads when it is started. Dropping it removes it, with the directories that are empty then.
struct Environment(PathBuf);

impl Environment {
    fn write(name: &str, launch: Launch<'_>) -> Result<Self, Failure> {
        let text = environment(launch)?;
        let file = Self(Path::new(ENVIRONMENTS).join(name));
        let folder = file.0.parent().unwrap_or(Path::new(ENVIRONMENTS));
        let written = fs::create_dir_all(folder).and_then(|()| fs::write(&file.0, text));
        written.map_err(|error| format!("cannot write {}: {error}", file.0.display()))?;
        Ok(file)
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let above = self.0.ancestors().skip(1).take_while(|path| *path != Path::new(ENVIRONMENTS));
        for folder in above {
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
}

/// What a unit is told.
fn environment(launch: Launch<'_>) -> Result<String, Failure> {
    let program = match launch.program {
        Some(program) => program.to_owned(),
        None => PathBuf::from(PROGRAMS).join(launch.role.program()),
    };
    let (program, control) = (utf8(&program)?, utf8(launch.control)?);
    // env(1), which the units start, would take it for a variable.
    if program.contains('=') {
        return Err(format!("the program \"{program}\" has a = in its path: move it"));
    }
    Ok(format!("PROGRAM={}\nCONTROL={}\n", names::quoted(program), names::quoted(control)))
}

/// systemd takes text only, and one line of it.
fn utf8(path: &Path) -> Result<&str, Failure> {
    let text = path.to_str().filter(|text| !text.contains(|c: char| c.is_control()));
    text.ok_or_else(|| format!("the path {path:?} is not plain text: choose another"))
}

fn refused(program: &Path, why: Failure) -> SupervisorError {
    SupervisorError::Spawn { program: program.into(), source: io::Error::other(why) }
}

impl Supervisor for Systemd {
    fn start<'a>(&'a self, launch: Launch<'a>) -> Starting<'a> {
        Box::pin(async move {
            let program = launch.program.unwrap_or(Path::new(launch.role.program()));
            self.start_now(launch).await.map_err(|why| refused(program, why))
        })
    }

    fn start_helper<'a>(&'a self, helper: HelperProgram<'a>) -> Starting<'a> {
        Box::pin(
            async move { self.start_helper_now(helper).await.map_err(|why| refused(helper.program, why)) },
        )
    }

    fn adopt<'a>(&'a self, process: &'a mut Process) -> Adopting<'a> {
        // Without a unit that knows it, it is still known that it has ended, and not how.
        Box::pin(async {
            process.witness = self.unit_of(process.pid()).await.map(|unit| Box::new(unit) as _)
        })
    }

    fn set_cpu_limits<'a>(
        &'a self,
        domain: &'a DomainName,
        weight: Option<u32>,
        cap: Option<u32>,
    ) -> SettingCpuLimits<'a> {
        Box::pin(self.weigh_now(domain, weight, cap))
    }

    fn release(&self, domain: &DomainName) {
        self.slices.borrow_mut().remove(domain);
        self.leaving.set(true);
        self.releases.say(Release::Slice(names::slice(domain.as_str())));
    }
}
