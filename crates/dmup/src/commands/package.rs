//! `package show`: what a package has, before anybody is asked to trust it.

use dmup_core::display::table_text;
use dmup_core::instance::Role;
use dmup_mirror::package::{Wanted, open};

use super::package_make;
use crate::args::{Format, PackageArgs, PackageCommand};
use crate::context::Context;
use crate::failure::{Failure, chain};

pub(crate) async fn run(args: &PackageArgs, context: &Context) -> Result<(), Failure> {
    match &args.command {
        PackageCommand::Show { package } => show(package, context),
        PackageCommand::Make(args) => package_make::run(args, context).await,
    }
}

fn show(path: &camino::Utf8Path, context: &Context) -> Result<(), Failure> {
    let scratch = context.scratch()?;
    let package = open(path, &Wanted::new(), scratch.path())
        .map_err(|error| Failure::refused(chain(&error)))?;
    let rows: Vec<Vec<String>> = package
        .components
        .iter()
        .map(|(role, part)| {
            vec![
                role.to_string(),
                part.arch.clone(),
                part.binary.to_string(),
                part.size.to_string(),
                part.replace.len().to_string(),
            ]
        })
        .collect();
    match context.global.format {
        Format::Default => {
            context
                .printer
                .data(format_args!("Package: {path}\nSHA-256: {}", package.digest.as_str()));
            let titles = ["Component", "Arch", "Build", "Bytes", "Files"];
            context.printer.data(table_text(&titles, &rows).trim_end_matches('\n'));
        }
        Format::Json => {
            let components: serde_json::Map<String, serde_json::Value> = package
                .components
                .iter()
                .map(|(role, part): (&Role, _)| {
                    (
                        role.to_string(),
                        serde_json::json!({
                            "arch": part.arch, "build": part.binary, "bytes": part.size,
                            "files": part.replace.iter().map(|(_, to)| to).collect::<Vec<_>>(),
                        }),
                    )
                })
                .collect();
            context.printer.data(serde_json::json!({
                "format": 1, "package": path, "sha256": package.digest, "components": components,
            }));
        }
    }
    Ok(())
}
