//! `domu-runner --control PATH`: waits for dom0's start message on that socket, then runs one guest.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use domu_runner::boot::BootError;
use domu_runner::machine::Machine;
use domu_runner::vm::VmError;
use domus_startup::Control;
use domus_startup::control::chain;
use shared_abi::control::{RunnerReply, RunnerRequest, StartPart};

/// Runs one guest's vCPUs, and nothing else.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Where to make the control socket.
    #[arg(long, value_name = "PATH")]
    control: PathBuf,
}

fn main() -> ExitCode {
    domus_startup::report("domu-runner", run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    domus_startup::threads::one_heap();
    let control = Control::listen(&args.control)?;
    let (request, fds) = control.accept_start::<RunnerRequest>()?;
    let machine = match request {
        RunnerRequest::Start(start) => Machine::start(*start, fds, &control.events()),
        _ => Err(anyhow::anyhow!("the first request must be `start`")),
    };
    let machine = machine.inspect_err(|error| refuse(&control, error))?;
    control.reply(&RunnerReply::Ready);
    Ok(control.serve(|request, fds| machine.handle(request, fds))?)
}

/// Tells the controller why there is no machine.
fn refuse(control: &Control, error: &anyhow::Error) {
    // Version 1 has no other word for it than a failure.
    if control.version().is_none_or(|version| version < 2) {
        return control.fail(error.as_ref());
    }
    let what = match (error.downcast_ref::<BootError>(), error.downcast_ref::<VmError>()) {
        (Some(boot), _) => boot.part(),
        (None, Some(VmError::Cpu(_))) if control.version() >= Some(3) => StartPart::Cpu,
        _ => StartPart::Other,
    };
    control.fail_with(&RunnerReply::Refused { what, why: chain(error.as_ref()) });
}
