//! The API's view of a domain's machine.

use std::path::PathBuf;

use shared_abi::control::RunnerRequest;

use crate::domain::dump::{Dump, Then};

/// What a trigger's name and vCPU ask of a runner, and what that is called in a refusal.
///
/// # Errors
/// One line.
pub fn trigger(what: &str, vcpu: Option<u32>) -> Result<(RunnerRequest, &'static str), String> {
    let request = match what {
        "nmi" => {
            let vcpu = vcpu.map(|vcpu| u8::try_from(vcpu).map_err(|_| format!("there is no vCPU {vcpu}")));
            return Ok((RunnerRequest::Nmi(vcpu.transpose()?), "give an NMI"));
        }
        "power" => (RunnerRequest::PowerButton, "press the power button"),
        "sleep" => (RunnerRequest::SleepButton, "press the sleep button"),
        "reset" => (RunnerRequest::Reset, "reset"),
        _ => {
            let what: String = what.chars().take(32).collect();
            return Err(format!("there is no trigger {what:?}: nmi, power, sleep or reset would do"));
        }
    };
    match vcpu {
        None => Ok(request),
        Some(_) => Err(format!("the trigger {what} is for the whole machine: leave the vCPU out")),
    }
}

/// The SysRq key that this text is.
///
/// # Errors
/// One line.
pub fn sysrq(key: &str) -> Result<RunnerRequest, String> {
    match *key.as_bytes() {
        [key] if key.is_ascii_graphic() => Ok(RunnerRequest::SysRq(key)),
        _ => {
            let key: String = key.chars().take(16).collect();
            Err(format!("{key:?} is no SysRq key: one letter or digit would do, such as h for help"))
        }
    }
}

/// The core that is asked for.
///
/// # Errors
/// One line.
pub fn dump(file: Option<String>, live: bool, then: &str) -> Result<Dump, String> {
    let file = file.map(PathBuf::from);
    if let Some(file) = file.as_ref().filter(|file| !file.is_absolute()) {
        return Err(format!("the file \"{}\" is not absolute", file.display()));
    }
    let then = match then {
        "go-on" => Then::GoOn,
        "destroy" => Then::Destroy,
        "reset" => Then::Reset,
        _ => {
            let then: String = then.chars().take(32).collect();
            return Err(format!("{then:?} is nothing to do after a core: go-on, destroy or reset would do"));
        }
    };
    Ok(Dump { file, live, then })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_nmi_has_a_vcpu_and_what_is_unknown_is_named() {
        assert_eq!(trigger("nmi", Some(3)).unwrap().0, RunnerRequest::Nmi(Some(3)));
        assert_eq!(trigger("nmi", None).unwrap().0, RunnerRequest::Nmi(None));
        assert!(trigger("nmi", Some(256)).unwrap_err().contains("vCPU 256"));
        assert!(trigger("reset", Some(0)).unwrap_err().contains("leave the vCPU out"));
        assert!(trigger("init", None).unwrap_err().contains("\"init\""));
    }

    #[test]
    fn a_sysrq_key_is_one_printable_character() {
        assert_eq!(sysrq("h"), Ok(RunnerRequest::SysRq(b'h')));
        for bad in ["", "hh", "\n", "ä"] {
            assert!(sysrq(bad).unwrap_err().contains("is no SysRq key"), "{bad:?}");
        }
    }
}
