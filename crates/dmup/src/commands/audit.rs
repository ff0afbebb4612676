//! `audit`: what was done, with dmup and with TiUP.

use dmup_core::display::audit_text;
use dmup_exec::ports::Clock;
use dmup_state::AuditEntry;

use crate::args::{AuditArgs, AuditCommand, Format};
use crate::ask;
use crate::context::{Context, state_failure};
use crate::failure::{Failure, Kind};

pub(crate) fn run(args: &AuditArgs, context: &Context) -> Result<(), Failure> {
    match (&args.command, &args.id) {
        (Some(AuditCommand::Cleanup { retain_days }), _) => clean_up(*retain_days, context),
        (None, Some(id)) => show(id, context),
        (None, None) => list(context),
    }
}

fn show(id: &str, context: &Context) -> Result<(), Failure> {
    let (at, text) = context
        .profile
        .audit()
        .show(id)
        .map_err(|error| state_failure(error).hint("`dmup audit` lists all entries"))?;
    match context.global.format {
        Format::Default => {
            context.printer.data(format_args!("- OPERATION TIME: {at} -"));
            context.printer.data(text.trim_end_matches('\n'));
        }
        Format::Json => {
            context.printer.data(serde_json::json!({
                "format": 1, "id": id, "time": at.to_string(), "text": text,
            }));
        }
    }
    Ok(())
}

fn list(context: &Context) -> Result<(), Failure> {
    let entries = context.profile.audit().entries().map_err(state_failure)?;
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
                .map(|it| {
                    serde_json::json!({
                        "id": it.id, "time": it.time_text(), "command": it.command,
                    })
                })
                .collect();
            context.printer.data(serde_json::json!({ "format": 1, "entries": entries }));
        }
    }
    Ok(())
}

/// Removes what is older than so many days; asks, unless it is a script (TiUP's rule).
fn clean_up(retain_days: u32, context: &Context) -> Result<(), Failure> {
    let log = context.profile.audit();
    let span = jiff::SignedDuration::from_hours(24 * i64::from(retain_days));
    let before = context.clock.now().checked_sub(span).map_err(|error| {
        Failure::new(Kind::Usage, format_args!("--retain-days {retain_days}: {error}"))
    })?;
    let since = before.strftime("%Y-%m-%dT%H:%M:%SZ");
    let old: Vec<AuditEntry> = log
        .entries()
        .map_err(state_failure)?
        .into_iter()
        .filter(|entry| entry.at < before)
        .collect();
    let bytes: u64 = old.iter().map(|entry| entry.bytes).sum();
    let is_script = context.global.format == Format::Json;
    if !old.is_empty() && !context.global.yes && !is_script {
        ask::confirm(&format!(
            "Will remove {} entries ({bytes} bytes) from before {since} in {}.",
            old.len(),
            log.dir()
        ))?;
    }
    let gone = log.remove_before(before).map_err(|error| {
        let failure = state_failure(error);
        Failure { kind: Kind::Failed, ..failure }.now("entries before that one are gone")
    })?;
    match context.global.format {
        Format::Default => {
            context
                .printer
                .talk(format_args!("Removed {} entries from before {since}", gone.len()));
        }
        Format::Json => context.printer.data(serde_json::json!({ "deleted_logs": {
            "files": gone.iter().map(|it| log.dir().join(&it.id)).collect::<Vec<_>>(),
            "size": gone.iter().map(|it| it.bytes).sum::<u64>(),
            "count": gone.len(),
            "delete_before_time": since.to_string(),
        }})),
    }
    Ok(())
}
