//! Events of a run as lines for people, or as JSON lines.
//!
//! On a terminal the step under way has a spinner below the lines; elsewhere
//! every line is whole and final, so that a log of it reads the same.

use std::io::Write;
use std::time::Duration;

use dmup_core::journal::TurnEnd;
use dmup_core::plan::Kind;
use dmup_exec::Event;
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::Format;

/// Prints events as they come.
pub(crate) struct Progress {
    format: Format,
    spinner: Option<ProgressBar>,
    last_wait: Option<String>,
}

impl Progress {
    pub(crate) fn new(format: Format, is_terminal: bool) -> Self {
        let spinner = (is_terminal && format == Format::Default).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(
                ProgressStyle::with_template("      {spinner} {wide_msg} {elapsed}")
                    .expect("a fixed template"),
            );
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { format, spinner, last_wait: None }
    }

    /// A sentence outside of any run.
    pub(crate) fn say(&self, text: &str) {
        if self.format == Format::Default {
            self.line(text);
        }
    }

    /// What is under way and may take longer than a second.
    pub(crate) fn under_way(&self, text: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.reset_elapsed();
            spinner.set_message(text.to_owned());
        }
    }

    pub(crate) fn event(&mut self, event: &Event) {
        if self.format == Format::Json {
            // An event is text and numbers; if it could not be written, the report still has it all.
            if let Ok(text) = serde_json::to_string(event) {
                drop(writeln!(std::io::stdout().lock(), "{text}"));
            }
            return;
        }
        match event {
            Event::TurnBegins { instance, number, of } => {
                self.line(&format!("[{number}/{of}] {instance}"));
            }
            Event::StepBegins { step } => {
                self.last_wait = None;
                self.under_way(&step.describe());
            }
            Event::StepEnds { step, took, note } => {
                // What `-V` printed has several lines; the first names the release.
                let note = note.as_deref().and_then(|note| note.lines().next());
                let note = note.map(|note| format!(": {note}")).unwrap_or_default();
                self.line(&format!("      {} ({}){note}", step.describe(), span(*took)));
            }
            Event::StepSkipped { step, why } => {
                self.line(&format!("      not needed: {}: {why}", step.describe()));
            }
            Event::StepFails { step, error } => {
                self.line(&format!("      FAILED: {}: {error}", step.describe()));
            }
            Event::Waiting { instance, missing, .. } => {
                let text = format!("{instance} waits: {}", missing.join("; "));
                if self.last_wait.as_ref() != Some(&text) {
                    match &self.spinner {
                        Some(spinner) => spinner.set_message(text.clone()),
                        None => self.line(&format!("      {text}")),
                    }
                    self.last_wait = Some(text);
                }
            }
            Event::Evidence { instance, lines } => {
                self.line(&format!("      what {instance} said last:"));
                for line in lines {
                    self.line(&format!("        | {line}"));
                }
            }
            Event::GoesBack { instance, why } => {
                self.line(&format!("      {instance} goes back: {why}"));
            }
            Event::TurnEnds { instance, end, kind } => {
                let end = match (end, kind) {
                    (TurnEnd::Changed, Kind::Hotfix | Kind::Upgrade) => {
                        "runs the new build, healthy"
                    }
                    (TurnEnd::Changed, Kind::Rollback) => "is back on its earlier build, healthy",
                    (TurnEnd::Changed, Kind::Restart | Kind::Reload) => "runs again, healthy",
                    (TurnEnd::RolledBack, Kind::Restart) => "stays as it is",
                    (TurnEnd::RolledBack, Kind::Reload) => "has its files from before",
                    (TurnEnd::RolledBack, Kind::Hotfix | Kind::Upgrade) => {
                        "is back on the build from before"
                    }
                    (TurnEnd::RolledBack, Kind::Rollback) => {
                        "could not go back and runs the hotfix, healthy"
                    }
                    (TurnEnd::Left, _) => "was left as it is, not healthy",
                    (TurnEnd::Untouched, _) => "was not touched",
                };
                self.line(&format!("      {instance} {end}"));
            }
            Event::Note { text } => self.line(&format!("      note: {text}")),
        }
    }

    /// Takes the spinner off the screen.
    pub(crate) fn end(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }

    fn line(&self, text: &str) {
        match &self.spinner {
            Some(spinner) => spinner.println(text),
            None => drop(writeln!(std::io::stderr().lock(), "{text}")),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// `0.3s`, `12s`, `2m05s`.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    if seconds >= 60 {
        format!("{}m{:02}s", seconds / 60, seconds % 60)
    } else {
        format!("{:.1}s", span.as_secs_f64())
    }
}
