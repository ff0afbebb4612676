//! Writes entries down and sends events, in that order.

use std::cell::RefCell;

use dmup_core::journal::Entry;

use crate::error::RunError;
use crate::events::Event;
use crate::journal::Journal;
use crate::ports::Clock;

/// Journal and events of one run. Turns that overlap share it: neither is ever held across a wait.
pub(crate) struct Recorder<'a> {
    journal: RefCell<&'a mut dyn Journal>,
    events: RefCell<&'a mut (dyn FnMut(Event) + Send)>,
    clock: &'a dyn Clock,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(
        journal: &'a mut dyn Journal,
        events: &'a mut (dyn FnMut(Event) + Send),
        clock: &'a dyn Clock,
    ) -> Self {
        Self { journal: RefCell::new(journal), events: RefCell::new(events), clock }
    }

    /// When it returns, the entry survives a crash.
    pub(crate) fn write(&self, entry: &Entry) -> Result<(), RunError> {
        Ok(self.journal.borrow_mut().append(self.clock.now(), entry)?)
    }

    pub(crate) fn say(&self, event: Event) {
        (self.events.borrow_mut())(event);
    }
}
