//! The life of a domain, decided in pure code: (state, event) → (state, actions).
//!
//! ```text
//!            Create                Built          Pause, Trouble / Unpause
//!   (none) ────────▶ Building ───────────▶ Running ◀────────────────▶ Paused
//!                     ▲  │ BuildFailed       │ │ Shutdown, Reboot        │
//!                     │  │ Destroy           │ ▼                         │
//!                     │  │                   │ Stopping                  │ Destroy, or the machine stops
//!                     │  │                   │ │ the machine stops,      │
//!                     │  │                   │ │ Destroy                 │
//!                     │  ▼                   ▼ ▼                         │
//!              Gone,  │ Dying ◀──────────────┴─┴─────────────────────────┤
//!              restart└──┤                                               │ policy "preserve"
//!                        │ Gone                          Destroy         ▼
//!                        ▼                        Dying ◀──────────── Preserved
//!                      Dead
//! ```
//!
//! An action that fails takes the state back to where it was before the event; a guest that was built and cannot be
//! resumed is a build that failed. A domain whose guest has run once is built again and again until it runs or an
//! operator destroys it: nothing that an operator made disappears but as its policy says.
//!
//! Promises, tested with random events and actions that fail: `Dead` is final; a new machine is built only after
//! everything of the old one is gone; whatever happens, `Destroy` leads to `Dead`; the guest runs in `Running` and
//! `Stopping` and in no other state; a core is written before the machine is removed.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};
use shared_abi::control::StopReason;

use crate::config::{OnStop, Policy};

/// Where a domain is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its processes are being started.
    Building,
    /// Its vCPUs run.
    Running,
    /// An operator has paused it.
    Paused,
    /// The guest was asked to switch itself off, and still runs.
    Stopping(AfterOff),
    /// Its machine has stopped; what is left is its console's history.
    Preserved {
        /// It did not stop of its own will.
        crashed: bool,
    },
    /// Everything of it is being removed.
    Dying(Next),
    /// Nothing of it is left.
    Dead,
}

/// What follows when a guest that was asked to switch off has done so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterOff {
    /// What `on_poweroff` says.
    Policy,
    /// It is started again, whatever `on_poweroff` says.
    Restart,
    /// It is gone, whatever `on_poweroff` says: dom0 itself is going.
    Destroy,
}

/// What follows when everything of a machine is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Next {
    /// Nothing.
    Dead,
    /// The next machine.
    Restart,
}

/// What happens to a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All its processes are ready.
    Built,
    /// One could not be started; the operator has been told why.
    BuildFailed,
    /// An operator asks to stop its vCPUs.
    Pause,
    /// An operator asks to let them run again.
    Unpause,
    /// Something the guest needs is gone or fails, and its vCPUs are to wait for an operator.
    Trouble,
    /// An operator asks the guest to switch itself off.
    Shutdown,
    /// An operator asks the guest to switch itself off, and to be started again.
    Reboot,
    /// dom0 is going: the guest is to switch itself off and to stay off.
    Retire,
    /// An operator wants everything of it removed, now.
    Destroy,
    /// The machine has stopped by itself.
    Stopped(StopReason),
    /// The runner is gone without a word.
    RunnerDied,
    /// Everything of the machine is removed.
    Gone,
    /// This action was done.
    Done(Action),
    /// This action was refused or failed: the runner is as it was.
    Failed(Action),
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a machine, with a new number. Its end is [`Event::Built`] or [`Event::BuildFailed`].
    Build,
    /// Have the requests done again that are held, and let the vCPUs run.
    Resume,
    /// Stop the vCPUs.
    Pause,
    /// Press the ACPI power button.
    PressPowerButton,
    /// Have the runner write a core of the machine, which has stopped.
    DumpCore,
    /// End the runner and the backends, keep the console.
    StopMachine,
    /// End every process and remove everything. Its end is [`Event::Gone`].
    TearDown,
    /// Take the name off the list.
    Forget,
}

/// An operator's wish that the state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {act}: the domain {state}{cure}")]
pub struct Refused {
    act: &'static str,
    state: State,
    cure: &'static str,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Building => "is being built",
            State::Running => "is running",
            State::Paused => "is paused",
            State::Stopping(_) => "is shutting down",
            State::Preserved { crashed: true } => "has crashed and is preserved",
            State::Preserved { crashed: false } => "has stopped and is preserved",
            State::Dying(_) => "is being removed",
            State::Dead => "is gone",
        })
    }
}

impl State {
    /// True while a machine exists whose vCPUs can run.
    pub fn has_machine(self) -> bool {
        matches!(self, State::Running | State::Paused | State::Stopping(_))
    }
}

/// A domain's way through its states, and what it has to do just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    state: State,
    /// A guest of it has run, or it is to be built until one does: a build that fails is tried again.
    lasts: bool,
    /// Where the next action takes the domain back to if it fails.
    before: Option<State>,
    actions: VecDeque<Action>,
}

impl Life {
    /// A domain that is to be built.
    pub fn new() -> Self {
        Self { state: State::Building, lasts: false, before: None, actions: [Action::Build].into() }
    }

    /// A domain that is to be built, again and again until it runs.
    pub fn lasting() -> Self {
        Self { lasts: true, ..Self::new() }
    }

    /// One that goes on in a state, and does something first.
    pub fn resumed(state: State, actions: impl IntoIterator<Item = Action>) -> Self {
        Self { state, lasts: true, before: None, actions: actions.into_iter().collect() }
    }

    /// Where it is, or is going by what it does just now.
    pub fn state(&self) -> State {
        self.state
    }

    /// Where it is for those who look at it: what is being done for the next state is not done yet.
    pub fn reached(&self) -> State {
        match self.before {
            Some(before) if self.state.has_machine() => before,
            _ => self.state,
        }
    }

    /// A build that fails is tried again.
    pub fn lasts(&self) -> bool {
        self.lasts
    }

    /// What it has to do next. Whoever does it reports [`Event::Done`] or [`Event::Failed`], or what the action says.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// One step. An event that means nothing in a state, or comes too late, changes nothing.
    ///
    /// # Errors
    /// [`Refused`] for an operator's wish that the state does not allow; nothing changes.
    pub fn step(&mut self, event: &Event, policy: Policy) -> Result<(), Refused> {
        match event {
            Event::Done(action) => self.done(*action),
            Event::Failed(_) => self.failed(),
            event => {
                let (mut state, actions) = next(self.state, event, policy)?;
                if *event == Event::BuildFailed && self.state == State::Building && self.lasts {
                    state = State::Dying(Next::Restart);
                }
                if !actions.is_empty() {
                    self.before = Some(self.state);
                    self.actions.extend(actions);
                }
                self.state = state;
            }
        }
        Ok(())
    }

    /// What comes after an action that was done may still fail, and the guest is as that action has left it.
    fn done(&mut self, action: Action) {
        self.lasts |= action == Action::Resume;
        self.before = match action {
            Action::Resume if !self.actions.is_empty() => Some(State::Running),
            _ if self.actions.is_empty() => None,
            _ => self.before,
        };
    }

    fn failed(&mut self) {
        match self.before.take() {
            // It was built and never ran.
            Some(State::Building) => {
                self.state = State::Dying(if self.lasts { Next::Restart } else { Next::Dead });
                self.actions = [Action::TearDown].into();
            }
            Some(before) if self.state.has_machine() => {
                self.state = before;
                self.actions.clear();
            }
            _ => {}
        }
    }
}

impl Default for Life {
    fn default() -> Self {
        Self::new()
    }
}

/// The state after an event from outside, and what is to be done for it.
fn next(state: State, event: &Event, policy: Policy) -> Result<(State, Vec<Action>), Refused> {
    use Action as A;
    use State as S;
    let refuse = |act, cure| Err(Refused { act, state, cure });
    let stay = Ok((state, vec![]));
    match (event, state) {
        (Event::Destroy, S::Building | S::Running | S::Paused | S::Stopping(_) | S::Preserved { .. }) => {
            Ok((S::Dying(Next::Dead), vec![A::TearDown]))
        }
        (Event::Destroy | Event::Retire, S::Dying(_)) => Ok((S::Dying(Next::Dead), vec![])),
        (Event::Destroy | Event::Retire, S::Dead) => stay,

        (Event::Built, S::Building) => Ok((S::Running, vec![A::Resume])),
        (Event::BuildFailed, S::Building) => Ok((S::Dying(Next::Dead), vec![A::TearDown])),
        (Event::Built | Event::BuildFailed, _) => stay,

        (Event::Pause | Event::Trouble, S::Running) => Ok((S::Paused, vec![A::Pause])),
        (Event::Pause, S::Paused) | (Event::Trouble, _) => stay,
        // Also while it runs: a pause that was given up may still have been obeyed.
        (Event::Unpause, S::Paused | S::Running) => Ok((S::Running, vec![A::Resume])),
        // Its vCPUs run, but requests may be held.
        (Event::Unpause, S::Stopping(_)) => Ok((state, vec![A::Resume])),
        (Event::Pause, _) => refuse("pause", ""),
        (Event::Unpause, _) => refuse("unpause", ""),

        (Event::Shutdown, S::Running | S::Stopping(_)) => {
            Ok((S::Stopping(AfterOff::Policy), vec![A::PressPowerButton]))
        }
        (Event::Reboot, S::Running | S::Stopping(_)) => {
            Ok((S::Stopping(AfterOff::Restart), vec![A::PressPowerButton]))
        }
        (Event::Shutdown, S::Paused) => refuse("shut down", ": unpause it first, or destroy it"),
        (Event::Reboot, S::Paused) => refuse("reboot", ": unpause it first"),
        (Event::Shutdown, _) => refuse("shut down", ""),
        (Event::Reboot, _) => refuse("reboot", ""),

        (Event::Retire, S::Running | S::Stopping(_)) => {
            Ok((S::Stopping(AfterOff::Destroy), vec![A::PressPowerButton]))
        }
        // A paused guest must run to switch itself off.
        (Event::Retire, S::Paused) => {
            Ok((S::Stopping(AfterOff::Destroy), vec![A::Resume, A::PressPowerButton]))
        }
        (Event::Retire, S::Building | S::Preserved { .. }) => Ok((S::Dying(Next::Dead), vec![A::TearDown])),

        (Event::Stopped(reason), S::Running | S::Paused | S::Stopping(_)) => Ok(ended(state, reason, policy)),
        (Event::RunnerDied, S::Running | S::Paused | S::Stopping(_)) => {
            let killed = StopReason::VcpuFailed(String::new());
            Ok(ended(state, &killed, policy))
        }
        (Event::Stopped(_) | Event::RunnerDied, _) => stay,

        (Event::Gone, S::Dying(Next::Restart)) => Ok((S::Building, vec![A::Build])),
        (Event::Gone, S::Dying(Next::Dead)) => Ok((S::Dead, vec![A::Forget])),
        (Event::Gone, _) => stay,
        // They change no state by themselves: see `Life::step`.
        (Event::Done(_) | Event::Failed(_), _) => stay,
    }
}

/// The machine has stopped: what now?
fn ended(state: State, reason: &StopReason, policy: Policy) -> (State, Vec<Action>) {
    let (wish, crashed) = match (reason, policy.on_triple_fault) {
        (StopReason::PowerOff, _) => (policy.on_poweroff, false),
        (StopReason::Reboot, _) | (StopReason::TripleFault, None) => (policy.on_reboot, false),
        (StopReason::TripleFault, Some(wish)) => (wish, true),
        (StopReason::VcpuFailed(_), _) => (policy.on_crash, true),
    };
    let wish = match state {
        State::Stopping(AfterOff::Destroy) => OnStop::Destroy,
        State::Stopping(AfterOff::Restart) if !crashed => OnStop::Restart,
        _ => wish,
    };
    match wish {
        OnStop::Destroy => (State::Dying(Next::Dead), vec![Action::TearDown]),
        OnStop::Restart => (State::Dying(Next::Restart), vec![Action::TearDown]),
        OnStop::CoredumpDestroy => (State::Dying(Next::Dead), vec![Action::DumpCore, Action::TearDown]),
        OnStop::CoredumpRestart => (State::Dying(Next::Restart), vec![Action::DumpCore, Action::TearDown]),
        OnStop::Preserve => (State::Preserved { crashed }, vec![Action::StopMachine]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wishes() -> impl Strategy<Value = OnStop> {
        prop_oneof![
            Just(OnStop::Destroy),
            Just(OnStop::Restart),
            Just(OnStop::Preserve),
            Just(OnStop::CoredumpDestroy),
            Just(OnStop::CoredumpRestart),
        ]
    }

    fn policies() -> impl Strategy<Value = Policy> {
        (wishes(), wishes(), wishes(), prop::option::of(wishes())).prop_map(
            |(on_poweroff, on_reboot, on_crash, on_triple_fault)| Policy {
                on_poweroff,
                on_reboot,
                on_crash,
                on_triple_fault,
            },
        )
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => Just(Event::Built),
            1 => Just(Event::BuildFailed),
            2 => Just(Event::Pause),
            2 => Just(Event::Unpause),
            2 => Just(Event::Trouble),
            2 => Just(Event::Shutdown),
            2 => Just(Event::Reboot),
            1 => Just(Event::Retire),
            1 => Just(Event::Destroy),
            2 => Just(Event::Stopped(StopReason::PowerOff)),
            2 => Just(Event::Stopped(StopReason::Reboot)),
            1 => Just(Event::Stopped(StopReason::TripleFault)),
            1 => Just(Event::RunnerDied),
            4 => Just(Event::Gone),
        ]
    }

    /// What the actions have made of the world.
    #[derive(Default)]
    struct World {
        processes: bool,
        machine_runs: bool,
        forgotten: u32,
    }

    impl World {
        fn act(&mut self, action: Action) {
            match action {
                Action::Build => {
                    assert!(!self.processes, "built on top of an machine that is not gone");
                    self.processes = true;
                }
                // Resuming one that runs changes nothing.
                Action::Resume => {
                    assert!(self.processes);
                    self.machine_runs = true;
                }
                Action::Pause => {
                    assert!(self.machine_runs);
                    self.machine_runs = false;
                }
                Action::PressPowerButton => assert!(self.machine_runs),
                Action::DumpCore => assert!(self.processes, "a core of a machine that is gone"),
                Action::StopMachine => {
                    assert!(self.processes);
                    self.machine_runs = false;
                }
                Action::TearDown => {
                    assert!(self.processes, "torn down twice");
                    self.machine_runs = false;
                }
                Action::Forget => self.forgotten += 1,
            }
        }
    }

    proptest! {
        /// Each action is done or fails as `fails` says in turn; no event comes between the actions of one step.
        #[test]
        fn whatever_happens_and_whatever_fails_the_promises_hold(
            policy in policies(),
            events in prop::collection::vec(events(), 0..60),
            fails in prop::collection::vec(any::<bool>(), 32),
        ) {
            let mut world = World::default();
            let mut fails = fails.into_iter().cycle();
            let mut life = Life::new();
            let act = |life: &mut Life, world: &mut World, fails: &mut dyn Iterator<Item = bool>| {
                while let Some(action) = life.next_action() {
                    let fallible = matches!(action, Action::Resume | Action::Pause | Action::PressPowerButton);
                    let failed = fallible && fails.next() == Some(true);
                    if !failed {
                        world.act(action);
                    }
                    let end = if failed { Event::Failed(action) } else { Event::Done(action) };
                    life.step(&end, policy).unwrap();
                }
            };
            act(&mut life, &mut world, &mut fails);
            for event in &events {
                // The edge reports `Gone` once, when the teardown it was told to do is done.
                if *event == Event::Gone {
                    if !matches!(life.state(), State::Dying(_)) {
                        continue;
                    }
                    world.processes = false;
                }
                let before = life.clone();
                if life.step(event, policy).is_err() {
                    prop_assert_eq!(&life, &before, "a refusal changes nothing");
                    continue;
                }
                if before.state() == State::Dead {
                    prop_assert_eq!(&life, &before);
                }
                act(&mut life, &mut world, &mut fails);
                prop_assert_eq!(
                    world.machine_runs,
                    matches!(life.state(), State::Running | State::Stopping(_)),
                    "{:?} after {:?} in {:?}", life, event, before
                );
                prop_assert_eq!(world.forgotten, u32::from(life.state() == State::Dead));
            }
            // Destroy is never refused and always ends in Dead.
            life.step(&Event::Destroy, policy).unwrap();
            act(&mut life, &mut world, &mut fails);
            life.step(&Event::Gone, policy).unwrap();
            prop_assert_eq!(life.state(), State::Dead);
        }
    }

    const POLICY: Policy = Policy {
        on_poweroff: OnStop::Destroy,
        on_reboot: OnStop::Restart,
        on_crash: OnStop::Preserve,
        on_triple_fault: None,
    };

    /// Where a domain is after these events, if whatever it does succeeds.
    fn run(events: &[Event]) -> Life {
        let mut life = Life::new();
        for event in events {
            while let Some(action) = life.next_action() {
                life.step(&Event::Done(action), POLICY).unwrap();
            }
            life.step(event, POLICY).unwrap();
        }
        life
    }

    /// Has the next action fail.
    fn fail(life: &mut Life) {
        let action = life.next_action().unwrap();
        life.step(&Event::Failed(action), POLICY).unwrap();
    }

    #[test]
    fn an_operators_reboot_starts_a_guest_again_that_switched_itself_off() {
        let off = Event::Stopped(StopReason::PowerOff);
        assert_eq!(run(&[Event::Built, Event::Reboot, off.clone()]).state(), State::Dying(Next::Restart));
        assert_eq!(run(&[Event::Built, Event::Shutdown, off]).state(), State::Dying(Next::Dead));
    }

    #[test]
    fn each_way_a_machine_stops_has_its_own_policy() {
        assert_eq!(
            run(&[Event::Built, Event::Stopped(StopReason::Reboot)]).state(),
            State::Dying(Next::Restart)
        );
        assert_eq!(run(&[Event::Built, Event::RunnerDied]).state(), State::Preserved { crashed: true });
        // How some guests reset themselves, unless somebody wants to know of it.
        let fault = Event::Stopped(StopReason::TripleFault);
        assert_eq!(run(&[Event::Built, fault.clone()]).state(), State::Dying(Next::Restart));
        let mut told = run(&[Event::Built]);
        told.step(&fault, Policy { on_triple_fault: Some(OnStop::Preserve), ..POLICY }).unwrap();
        assert_eq!(told.state(), State::Preserved { crashed: true });
        assert_eq!(
            run(&[Event::Built, Event::Pause, Event::RunnerDied, Event::Destroy, Event::Gone]).state(),
            State::Dead
        );
    }

    #[test]
    fn a_guest_whose_pause_was_given_up_can_be_let_run_again() {
        let mut life = run(&[Event::Built, Event::Pause]);
        fail(&mut life);
        assert_eq!(life.state(), State::Running);
        life.step(&Event::Unpause, POLICY).unwrap();
        assert_eq!((life.state(), life.next_action()), (State::Running, Some(Action::Resume)));
    }

    #[test]
    fn what_fails_takes_the_domain_back_to_where_it_was() {
        let paused = run(&[Event::Built, Event::Pause, Event::Unpause]);
        for (mut life, before) in [
            (run(&[Event::Built, Event::Shutdown]), State::Running),
            (run(&[Event::Built, Event::Shutdown, Event::Reboot]), State::Stopping(AfterOff::Policy)),
            (paused, State::Paused),
            (run(&[Event::Built, Event::Pause, Event::Retire]), State::Paused),
        ] {
            fail(&mut life);
            assert_eq!((life.state(), life.next_action()), (before, None));
        }
        // It was resumed to be asked, and runs.
        let mut retired = run(&[Event::Built, Event::Pause, Event::Retire]);
        assert_eq!(retired.next_action(), Some(Action::Resume));
        retired.step(&Event::Done(Action::Resume), POLICY).unwrap();
        fail(&mut retired);
        assert_eq!(retired.state(), State::Running);
    }

    #[test]
    fn a_guest_that_is_built_and_never_runs_is_removed() {
        let mut life = run(&[Event::Built]);
        fail(&mut life);
        assert_eq!((life.state(), life.next_action()), (State::Dying(Next::Dead), Some(Action::TearDown)));
    }

    #[test]
    fn a_domain_that_has_run_is_built_again_when_a_build_fails_and_one_that_has_not_is_gone() {
        let reset = Event::Stopped(StopReason::Reboot);
        let mut life = run(&[Event::Built, reset, Event::Gone, Event::BuildFailed]);
        assert_eq!(life.state(), State::Dying(Next::Restart));
        for event in [Event::Gone, Event::BuildFailed, Event::Destroy, Event::Gone] {
            while let Some(action) = life.next_action() {
                life.step(&Event::Done(action), POLICY).unwrap();
            }
            life.step(&event, POLICY).unwrap();
        }
        assert_eq!(life.state(), State::Dead);
        assert_eq!(run(&[Event::BuildFailed, Event::Gone]).state(), State::Dead);
        let mut lasting = Life::lasting();
        lasting.step(&Event::BuildFailed, POLICY).unwrap();
        assert_eq!(lasting.state(), State::Dying(Next::Restart));
    }

    #[test]
    fn a_restart_under_way_can_be_destroyed() {
        let reset = Event::Stopped(StopReason::Reboot);
        assert_eq!(run(&[Event::Built, reset, Event::Destroy, Event::Gone]).state(), State::Dead);
    }

    #[test]
    fn a_refusal_says_what_state_the_domain_is_in() {
        let error =
            run(&[Event::Built, Event::Pause]).step(&Event::Shutdown, POLICY).unwrap_err().to_string();
        assert_eq!(error, "cannot shut down: the domain is paused: unpause it first, or destroy it");
    }
}
