//! `audit`: what was done, with dmup and with TiUP.

use dmup_core::display::audit_text;

use crate::args::{AuditArgs, Format};
use crate::context::{Context, state_failure};
use crate::failure::Failure;

pub(crate) fn run(args: &AuditArgs, context: &Context) -> Result<(), Failure> {
    let log = context.profile.audit();
    if let Some(id) = &args.id {
        let (at, text) = log.show(id).map_err(state_failure)?;
        context.printer.data(format_args!("- OPERATION TIME: {at} -"));
        context.printer.data(text.trim_end_matches('\n'));
        return Ok(());
    }
    let entries = log.entries().map_err(state_failure)?;
    match context.global.format {
        Format::Default => {
            let rows: Vec<[String; 3]> = entries
                .iter()
                .map(|it| [it.id.clone(), it.time_text(), it.command.clone()])
                .collect();
            context.printer.data(audit_text(&rows).trim_end_matches('\n'));
        }
        Format::Json => {
            let entries: Vec<serde_json::Value> = entries
                .iter()
                .map(|it| serde_json::json!({ "id": it.id, "time": it.time_text(), "command": it.command }))
                .collect();
            context.printer.data(serde_json::json!({ "format": 1, "entries": entries }));
        }
    }
    Ok(())
}
