//! What a domain's task tells as [events](crate::domain::events).

use crate::domain::Domain;
use crate::domain::events::Kind;
use crate::domain::lifecycle::State;

impl Domain {
    /// Tells what has happened to the domain.
    pub(super) fn happened(&self, kind: Kind, detail: Option<&str>) {
        let about = (self.config.name.clone(), self.view.borrow().domid);
        self.commons.events.tell(Some(about), kind, detail.map(str::to_owned));
    }

    /// Tells what a child has caused, as often as its lines are said: it may be in its guest's hands.
    pub(super) fn happened_of_child(&self, kind: Kind, detail: &str) {
        if self.lines_left > 0 {
            self.happened(kind, Some(detail));
        }
    }

    /// Tells that the domain is in another state than `before`.
    pub(super) fn entered(&self, before: State) {
        if std::mem::discriminant(&before) == std::mem::discriminant(&self.state) {
            return;
        }
        self.happened(
            match self.state {
                // Told when it has its number, and when everything of it is gone.
                State::Building | State::Dead => return,
                State::Running => Kind::Running,
                State::Paused => Kind::Paused,
                State::Stopping(_) => Kind::Stopping,
                State::Preserved { .. } => Kind::Preserved,
                State::Dying(_) => Kind::Dying,
            },
            None,
        );
    }
}
