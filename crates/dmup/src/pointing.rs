//! Errors that point at a line of YAML.

use dmup_core::topology::TopologyError;
use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Report,
};

use crate::failure::Failure;

/// The failure with the line in question below it.
pub(crate) fn at(error: &str, file: &str, text: &str, what: &TopologyError) -> Failure {
    let failure = Failure::refused(error);
    let failure = match &what.help {
        Some(help) => failure.hint(help),
        None => failure,
    };
    let Some(place) = what.place else { return failure };
    let line_begins: usize =
        text.split_inclusive('\n').take(place.line.saturating_sub(1)).map(str::len).sum();
    let offset = (line_begins + place.column.saturating_sub(1)).min(text.len());
    let width = text[offset.min(text.len())..]
        .find(|c: char| c.is_whitespace() || c == ':')
        .unwrap_or(text.len() - offset)
        .max(1);
    let diagnostic = MietteDiagnostic::new(what.message.clone())
        .with_label(LabeledSpan::at(offset..offset + width, "here"));
    let report = Report::new(diagnostic).with_source_code(NamedSource::new(file, text.to_owned()));
    let mut shown = String::new();
    let handler =
        GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_context_lines(1);
    if handler.render_report(&mut shown, report.as_ref()).is_err() {
        return failure;
    }
    failure.because([shown.trim_matches('\n').to_owned()])
}
