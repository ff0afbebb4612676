//! A plan as text for people, whole.

use std::fmt::Write as _;

use super::decision::{Kind, Plan};

/// Prints a plan: what is sent where, then each node with its steps, then what to agree to and to know.
pub fn render(plan: &Plan) -> String {
    let mut text = String::new();
    let what = match plan.kind {
        Kind::Hotfix => "Hotfix",
        Kind::Upgrade => "Upgrade",
        Kind::Rollback => "Rollback",
        Kind::Restart => "Restart",
        Kind::Reload => "Reload",
    };
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    let version = match &plan.to_version {
        Some(to) => format!("from {} to {to}", plan.version),
        None => format!("({})", plan.version),
    };
    line(format!(
        "{what} of {} {version}, {} node(s), plan {}",
        plan.cluster,
        plan.turns.len(),
        plan.fingerprint()
    ));
    if !plan.preparation.is_empty() {
        line("Before any node is touched:".to_owned());
        for step in &plan.preparation {
            line(format!("    {}", step.describe()));
        }
    }
    for (index, turn) in plan.turns.iter().enumerate() {
        let role = plan.instance(&turn.instance).map_or("?", |instance| instance.role.as_str());
        let mut head = String::new();
        // Writing to a string cannot fail.
        let _ok = write!(head, "{}. {} {}", index + 1, role, turn.instance);
        if turn.from != turn.to {
            let _ok = write!(head, ": {} -> {}", turn.from, turn.to);
        }
        if turn.was_broken {
            head.push_str(" (down now)");
        }
        if turn.overlaps {
            head.push_str(" (the next turn begins while it is watched)");
        }
        line(head);
        for path in turn.texts.iter().flat_map(|texts| &texts.paths) {
            line(format!("    differs: {path}"));
        }
        for step in &turn.steps {
            line(format!("    {}", step.describe()));
        }
    }
    for consent in &plan.consents {
        line(format!("To agree to: {consent}"));
    }
    for warning in &plan.warnings {
        line(format!("Note: {warning}"));
    }
    text
}
