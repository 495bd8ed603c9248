//! dom0 starts the processes itself.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{AccessFlags, access};
use shared_abi::{DomainName, Role};
use tokio::time::{Instant, sleep};

use crate::process::cgroup::{Cgroups, SHARED_TASKS};
use crate::process::confinement::Confinement;
use crate::process::spawn::{Becomes, Surroundings, spawn};
use crate::process::{
    Adopting, HelperProgram, Launch, Limits, Process, SettingCpuLimits, Starting, Supervisor,
    SupervisorError, output,
};

/// A process that was killed has left its cgroup within this time.
const END: Duration = Duration::from_secs(1);

/// Starts processes as children of dom0.
#[derive(Debug)]
pub struct Direct {
    places: Vec<PathBuf>,
    /// Where each program has been found.
    programs: RefCell<BTreeMap<Role, PathBuf>>,
    cgroups: Option<Cgroups>,
    dies_with_parent: bool,
}

impl Direct {
    /// Looks for programs in `libexec` if given, otherwise beside the running executable and in
    /// `/usr/libexec/domus`. `embedded` in a command in the foreground, no process gets a cgroup of its own, and each
    /// dies with the thread that calls this.
    pub fn new(libexec: Option<PathBuf>, embedded: bool) -> Self {
        let places = match libexec {
            Some(place) => vec![place],
            None => {
                let own = std::env::current_exe().ok();
                let own = own.as_deref().and_then(Path::parent).map(PathBuf::from);
                own.into_iter().chain([PathBuf::from("/usr/libexec/domus")]).collect()
            }
        };
        let cgroups = match embedded {
            // Whoever runs a domain in the foreground has put the command where it belongs.
            true => None,
            false => Cgroups::find()
                .inspect_err(|why| {
                    crate::log::stderr::line(format_args!(
                        "domains run without memory and process limits: {why}"
                    ));
                })
                .ok(),
        };
        Self { places, programs: RefCell::default(), cgroups, dies_with_parent: embedded }
    }

    fn program(&self, role: Role) -> Result<PathBuf, SupervisorError> {
        let mut programs = self.programs.borrow_mut();
        if let Some(path) = programs.get(&role) {
            return Ok(path.clone());
        }
        let mut candidates = self.places.iter().map(|place| place.join(role.program()));
        let found = candidates.find(|path| access(path, AccessFlags::X_OK).is_ok());
        let path = found.ok_or_else(|| SupervisorError::NoProgram {
            program: role.program(),
            places: self.places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
        })?;
        programs.insert(role, path.clone());
        Ok(path)
    }

    fn start_now(&self, launch: Launch<'_>) -> Result<Process, SupervisorError> {
        let program = match launch.program {
            Some(program) => program.into(),
            None => self.program(launch.role)?,
        };
        let group = self.cgroups.as_ref().and_then(|cgroups| match launch.limits {
            Some(Limits { domain, memory, vcpus, .. }) => cgroups.group(domain, memory, vcpus),
            None => cgroups.helper(launch.whom, None, SHARED_TASKS),
        });
        let around = Surroundings {
            cgroup: group.as_ref().map(AsFd::as_fd),
            dies_with_parent: self.dies_with_parent,
            alone: true,
            gives: None,
            becomes: None,
        };
        let args: [&[u8]; 2] = [b"--control", launch.control.as_os_str().as_bytes()];
        started(
            &program,
            launch.role.program(),
            launch.whom,
            launch.limits.map(|limits| limits.domain),
            &args,
            around,
        )
    }
}

/// Starts a program that serves `whom`, and passes on what it says.
fn started(
    program: &Path,
    name: &str,
    whom: &str,
    domain: Option<&DomainName>,
    args: &[&[u8]],
    around: Surroundings<'_>,
) -> Result<Process, SupervisorError> {
    let start = || {
        let (heard, says) = output::pipe()?;
        let (pid, pidfd) = spawn(program, args, says.as_fd(), around)?;
        let mut process = Process::new(pid, pidfd)?;
        let (whom, name, domain) = (whom.to_owned(), name.to_owned(), domain.cloned());
        let words = output::pass_on(heard, move |line| {
            let rest = line.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix(": "));
            let text = format!("{name}: {}", rest.unwrap_or(line));
            match &domain {
                Some(domain) => crate::log::line(domain, &text),
                None => crate::log::stderr::line(format_args!("{whom}: {text}")),
            }
        })?;
        process.words = Some(words);
        Ok(process)
    };
    start().map_err(|source| SupervisorError::Spawn { program: program.into(), source })
}

impl Direct {
    fn start_helper_now(&self, helper: HelperProgram<'_>) -> Result<Process, SupervisorError> {
        let Confinement { uid, memory, tasks, .. } = helper.confinement;
        let group = self.cgroups.as_ref().and_then(|cgroups| match helper.domain {
            Some(domain) => cgroups.there(domain),
            None => cgroups.helper(helper.whom, Some(memory), tasks),
        });
        let around = Surroundings {
            cgroup: group.as_ref().map(AsFd::as_fd),
            dies_with_parent: self.dies_with_parent,
            alone: false,
            gives: helper.gives,
            becomes: uid.map(|uid| Becomes { uid, capabilities: helper.confinement.capability_bits() }),
        };
        let name = helper.program.file_name().unwrap_or_default().to_string_lossy();
        let args: Vec<&[u8]> = helper.args.iter().map(|arg| arg.as_bytes()).collect();
        started(helper.program, &name, helper.whom, helper.domain, &args, around)
    }
}

impl Supervisor for Direct {
    fn start<'a>(&'a self, launch: Launch<'a>) -> Starting<'a> {
        Box::pin(std::future::ready(self.start_now(launch)))
    }

    fn start_helper<'a>(&'a self, helper: HelperProgram<'a>) -> Starting<'a> {
        Box::pin(std::future::ready(self.start_helper_now(helper)))
    }

    fn adopt<'a>(&'a self, _: &'a mut Process) -> Adopting<'a> {
        // A pidfd is all there is of another's child.
        Box::pin(std::future::ready(()))
    }

    fn set_cpu_limits<'a>(
        &'a self,
        domain: &'a DomainName,
        weight: Option<u32>,
        cap: Option<u32>,
    ) -> SettingCpuLimits<'a> {
        let weighed = match &self.cgroups {
            Some(cgroups) => cgroups.set_cpu_limits(domain, weight, cap),
            None => Err("this dom0 runs domains without cgroups: see its log".into()),
        };
        Box::pin(std::future::ready(weighed))
    }

    fn release(&self, domain: &DomainName) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.remove(domain);
        }
    }

    fn release_other<'a>(&'a self, whom: &'a str) -> Adopting<'a> {
        Box::pin(async move {
            let Some(cgroups) = &self.cgroups else { return };
            let deadline = Instant::now() + END;
            while !cgroups.remove_helper(whom) && Instant::now() < deadline {
                sleep(Duration::from_millis(5)).await;
            }
        })
    }
}
