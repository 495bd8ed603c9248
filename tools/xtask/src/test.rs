//! `cargo xtask test`: everything CI runs, in the order in which it fails fastest.
//!
//! A step that fails does not keep the others from running. A step that this machine cannot run is skipped with its
//! reason; a machine that can run no real guest at all is a failure and no skip.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use domus_tests::environment::Environment;
use domus_tests::images::Images;
use domus_tests::report::Tally;

use crate::command::{command, run};
use crate::images::{KERNELS, images};
use crate::packages::{Consent, Need, install_cargo_tool, install_cargo_tools, install_packages, is_root};
use crate::workspace::Profile;
use crate::{chaos, deb, demo, fuzz, lab, workspace};

/// Runs everything.
pub fn test(consent: Consent) -> Result<()> {
    let environment = Environment::detect();
    println!("This machine: {environment}");
    let start = Instant::now();
    install_packages(consent, &[Need::Tests])?;
    install_cargo_tools(consent)?;

    let mut steps = Steps::default();
    steps.run("fmt", || cargo(&["fmt", "--all", "--check"]));
    steps.run("clippy", || {
        cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])
    });
    steps.run("doc", || {
        let mut doc = command(
            "cargo",
            ["doc", "--workspace", "--no-deps", "--document-private-items", "--locked", "--quiet"],
        );
        run(doc.current_dir(workspace::root()).env("RUSTDOCFLAGS", "-D warnings"))
    });
    let programs = steps.run("programs", workspace::build_binaries);
    steps.run("nextest", || nextest(environment, programs.as_deref()));
    if let (Some(programs), true) = (&programs, environment != Environment::None) {
        steps.run("chaos", || chaos::chaos(programs, 60, None));
    }
    steps.run("fuzz", fuzz::short_runs);

    let mut tally = Tally::default();
    let built = steps.run("binaries and images", || Ok((workspace::build_binaries()?, images(KERNELS)?)));
    if let Some((bin, images)) = built {
        steps.run("strangers", || {
            let counted = qemu_interop(&bin, &images)?;
            add(&mut tally, counted)
        });
        steps.run("lab", || {
            let counted = guests(environment, &bin, &images)?;
            add(&mut tally, counted)
        });
        steps.run("services", || {
            let counted = services(&bin, &images)?;
            add(&mut tally, counted)
        });
        steps.run("demo --smoke", || demo::demo(consent, true));
    }
    steps.print(start.elapsed());
    println!("{tally}");
    if steps.failed() || tally.passed == 0 {
        bail!("cargo xtask test failed: {}", steps.failures().join(", "));
    }
    Ok(())
}

/// Runs the lab's part alone: the scenarios that `names` lists, or all.
pub fn lab_only(consent: Consent, names: &[String], build: bool) -> Result<()> {
    install_packages(consent, &[Need::Images, Need::TestGuest, Need::Guest, Need::Qemu, Need::Lab])?;
    let bin = if build { workspace::build_binaries()? } else { workspace::binaries() };
    let images = images(KERNELS)?;
    let tally = match Environment::detect() {
        Environment::Hardware => direct(&bin, &images, names)?,
        _ if names.is_empty() => side_by_side(&bin, &images)?,
        _ => lab::nested(&images, &bin, "lab", names)?,
    };
    println!("{tally}");
    if tally.failed > 0 || tally.passed == 0 {
        bail!("the lab failed");
    }
    Ok(())
}

/// Makes the package and runs the scenarios of services alone.
pub fn services_only(consent: Consent, build: bool) -> Result<()> {
    install_packages(consent, &[Need::Images, Need::TestGuest, Need::Qemu])?;
    install_cargo_tool(consent, "deb")?;
    let bin = if build { workspace::build_binaries()? } else { workspace::binaries() };
    let tally = services(&bin, &images(KERNELS)?)?;
    println!("{tally}");
    if tally.failed > 0 || tally.passed == 0 {
        bail!("the services failed");
    }
    Ok(())
}

/// Tests the package in a Debian of its own, in every environment: the host of the tests may not want the package.
fn services(bin: &Path, images: &Images) -> Result<Tally> {
    lab::services(images, bin, &deb::pack(bin, Profile::Lab)?)
}

/// Runs the tests with QEMU as the frontend, alone.
pub fn qemu_interop_only(consent: Consent) -> Result<()> {
    install_packages(consent, &[Need::Images, Need::TestGuest, Need::Qemu])?;
    let bin = workspace::build_binaries()?;
    let tally = qemu_interop(&bin, &images(KERNELS)?)?;
    println!("{tally}");
    if tally.failed > 0 {
        bail!("the strangers failed");
    }
    Ok(())
}

fn cargo(args: &[&str]) -> Result<()> {
    run(command("cargo", args).current_dir(workspace::root()))
}

/// The tests that make a virtual machine, as nextest filters them.
const NEEDS_KVM: &str = "binary(/^mini_guest/) \
    | (package(domus) & binary(/^(adoption|chaos|cpus|disks|events|faults|lifecycle|machine|observe|reach|recovery|refusals|rename|services|shapes|stuck|terminal|toolstack|update)$/)) \
    | (package(domu-runner) & (binary(boot) | test(/^(vm|virtio::transport|pci::msix)::/)))";

/// Unit and integration tests. Those that launch Domus find its programs in `programs`.
fn nextest(environment: Environment, programs: Option<&Path>) -> Result<()> {
    let mut nextest = command("cargo", ["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]);
    // The chaos has a step of its own.
    let left_out = match environment {
        Environment::None => {
            println!("Cannot run here, there is no /dev/kvm: the tests {NEEDS_KVM}");
            NEEDS_KVM
        }
        Environment::Hardware | Environment::Paravirtual => chaos::BINARY,
    };
    nextest.args(["-E", &format!("not ({left_out})")]);
    if let Some(programs) = programs {
        nextest.env("DOMUS_BIN", programs);
    }
    run(nextest.current_dir(workspace::root()))
}

/// Domus' backends under QEMU, in a network namespace of their own.
fn qemu_interop(bin: &Path, images: &Images) -> Result<Tally> {
    let wrapper: &[&str] = if is_root() { &["unshare", "--net"] } else { &["sudo", "unshare", "--net"] };
    lab::here(wrapper, bin, images, "strangers", &[])
}

fn guests(environment: Environment, bin: &Path, images: &Images) -> Result<Tally> {
    match environment {
        Environment::Hardware => direct(bin, images, &[]),
        Environment::Paravirtual | Environment::None => side_by_side(bin, images),
    }
}

fn direct(bin: &Path, images: &Images, names: &[String]) -> Result<Tally> {
    // The scenarios have a network and mounts of their own: the host keeps its way out and its resolver.
    let wrapper = ["sudo", "unshare", "--net", "--mount"];
    lab::here(&wrapper[usize::from(is_root())..], bin, images, "scenarios", names)
}

/// Two nested labs, each with half of the scenarios: each has one CPU.
fn side_by_side(bin: &Path, images: &Images) -> Result<Tally> {
    let names = lab::scenario_names(bin)?;
    let part = |odd: usize| -> Vec<String> { names.iter().skip(odd).step_by(2).cloned().collect() };
    let (left, right) = (part(0), part(1));
    let (left, right) = std::thread::scope(|scope| {
        let second = scope.spawn(|| lab::nested(images, bin, "lab-2", &right));
        let first = lab::nested(images, bin, "lab-1", &left);
        (first, second.join())
    });
    let mut tally = left?;
    tally.add(right.map_err(|_| anyhow::anyhow!("a lab's thread panicked"))??);
    Ok(tally)
}

fn add(tally: &mut Tally, counted: Tally) -> Result<()> {
    tally.add(counted);
    if counted.failed > 0 { Err(anyhow::anyhow!("{counted}")) } else { Ok(()) }
}

/// The steps that have run, and how each went.
#[derive(Default)]
struct Steps(Vec<(&'static str, Duration, Option<String>)>);

impl Steps {
    fn run<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Option<T> {
        println!("── {name}");
        let start = Instant::now();
        let result = step().with_context(|| name);
        let error = result.as_ref().err().map(|error| format!("{error:#}"));
        if let Some(error) = &error {
            println!("{error}");
        }
        self.0.push((name, start.elapsed(), error));
        result.ok()
    }

    fn failures(&self) -> Vec<&'static str> {
        self.0.iter().filter(|(_, _, error)| error.is_some()).map(|(name, ..)| *name).collect()
    }

    fn failed(&self) -> bool {
        !self.failures().is_empty()
    }

    fn print(&self, total: Duration) {
        println!("── done in {} s", total.as_secs());
        for (name, time, error) in &self.0 {
            let verdict = if error.is_none() { "ok  " } else { "FAIL" };
            println!("{verdict} {name:<20} {:>5} s", time.as_secs());
        }
    }
}
