//! Writes entries down and sends events, in that order.

use dmup_core::journal::Entry;

use crate::error::RunError;
use crate::events::Event;
use crate::journal::Journal;
use crate::ports::Clock;

/// Journal and events of one run.
pub(crate) struct Recorder<'a> {
    journal: &'a mut dyn Journal,
    events: &'a mut (dyn FnMut(Event) + Send),
    clock: &'a dyn Clock,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(
        journal: &'a mut dyn Journal,
        events: &'a mut (dyn FnMut(Event) + Send),
        clock: &'a dyn Clock,
    ) -> Self {
        Self { journal, events, clock }
    }

    /// When it returns, the entry survives a crash.
    pub(crate) fn write(&mut self, entry: &Entry) -> Result<(), RunError> {
        Ok(self.journal.append(self.clock.now(), entry)?)
    }

    pub(crate) fn say(&mut self, event: Event) {
        (self.events)(event);
    }
}
