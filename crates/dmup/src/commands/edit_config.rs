//! `edit-config`: changes settings in a cluster's record. Hosts are not touched: a `reload` brings the settings there.
//!
//! In: an edited topology, from an editor or a file. Names, addresses, ports and dirs stay as they were deployed
//! (`check_edit`). Unlike TiUP, a topology that is not taken ends with 3, and nobody is asked who is not there.

use std::io::Write as _;
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::topology::{Topology, check_edit};
use fs_err::os::unix::fs::OpenOptionsExt as _;
use similar::TextDiff;

use super::laying_out::read_text;
use crate::args::EditConfigArgs;
use crate::ask;
use crate::context::{Context, Known, state_failure};
use crate::failure::{Failure, chain};
use crate::pointing;

pub(crate) fn run(args: &EditConfigArgs, context: &Context) -> Result<(), Failure> {
    let known = context.cluster(&args.cluster)?;
    known.refuse_unfinished_scale_out(false)?;
    let _lock = known.lock("edit-config")?;
    // Read under the lock: what is saved in the end must be built on what is there now.
    let mut known = context.cluster(&args.cluster)?;
    let before = known.meta.topology.render();
    let edited = match &args.topology_file {
        Some(path) => checked(&known, path, &read_text(path)?)?,
        None => edit(&known, &before, context)?,
    };
    let after = edited.render();
    if after == before {
        context.printer.talk("The file has nothing changed");
        return Ok(());
    }
    let diff = TextDiff::from_lines(&before, &after);
    context.printer.talk(diff.unified_diff().context_radius(3).header("as it is", "as edited"));
    if !context.global.yes {
        ask::confirm(&format!("Will change the record of {}.", known.name))?;
    }
    known.meta.topology = edited;
    known.cluster.save_meta(&known.meta, &jiff::Zoned::now()).map_err(state_failure)?;
    context.printer.talk(format_args!(
        "Saved the settings of `{0}`. Its instances run with the old ones until `dmup reload {0}`",
        known.name
    ));
    Ok(())
}

/// An edited text as topology, if it may be.
fn checked(known: &Known, path: &Utf8Path, text: &str) -> Result<Topology, Failure> {
    let refused = |error: &dmup_core::topology::TopologyError| {
        let what = format!("take the edited topology {path} for {}: {error}", known.name);
        pointing::at(&what, path.as_str(), text, error)
    };
    let edited = Topology::parse(text).map_err(|error| refused(&error))?;
    check_edit(&known.meta.topology, &edited).map_err(|error| refused(&error))?;
    Ok(edited)
}

/// Lets the operator edit until it can be taken, or they give up.
fn edit(known: &Known, before: &str, context: &Context) -> Result<Topology, Failure> {
    let around = &context.surroundings;
    let editor = match &around.editor {
        Some(editor) => editor,
        // TiUP's choice. Without a terminal it waits for ever for somebody who types.
        None if around.stdin_is_terminal && around.stdout_is_terminal => "vi",
        None => {
            return Err(Failure::refused("there is no terminal to edit the topology on").hint(
                "give the edited topology with --topology-file, or a program that edits by itself with EDITOR",
            ));
        }
    };
    let scratch = context.scratch()?;
    let path = scratch.path().join("topology.yaml");
    let prepare = || -> std::io::Result<()> {
        let mut options = fs_err::OpenOptions::new();
        options.write(true).create_new(true);
        // Passwords of Grafana are in it.
        options.mode(0o600);
        options.open(&path)?.write_all(before.as_bytes())
    };
    prepare()
        .map_err(|error| Failure::refused(format_args!("prepare the file to edit: {error}")))?;
    loop {
        open_editor(editor, &path)?;
        let failure = match read_text(&path).and_then(|text| checked(known, &path, &text)) {
            Ok(edited) => return Ok(edited),
            Err(failure) => failure,
        };
        if !context.surroundings.stdin_is_terminal {
            return Err(failure);
        }
        context.printer.talk(&failure);
        ask::confirm("The edited topology cannot be taken. The editor opens once more.")?;
    }
}

/// `EDITOR` is a program and perhaps words for it, separated by blanks; no shell reads it.
fn open_editor(editor: &str, path: &Utf8PathBuf) -> Result<(), Failure> {
    let mut words = editor.split_whitespace();
    let program = words.next().unwrap_or("vi");
    let status = Command::new(program).args(words).arg(path).status().map_err(|error| {
        Failure::refused(format_args!("start the editor `{editor}`: {}", chain(&error)))
            .hint("set EDITOR, or give the edited topology with --topology-file")
    })?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::refused(format_args!("the editor `{editor}` ended with {status}")))
    }
}
