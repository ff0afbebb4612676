//! `docs/reference.md`: the help of every command as a page, written by `cargo xtask reference`.

use clap::CommandFactory;
use dmup::args::Cli;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference.md");

/// Set by `cargo xtask reference`: write the page instead of comparing it.
const WRITE: &str = "DMUP_WRITE_REFERENCE";

const HEAD: &str = "\
# Commands

Written by `cargo xtask reference` from the program's own help, which `cargo xtask ci-checks` compares it with. Flags of every command
are at the end. What differs from `tiup dm` is in [differences.md](differences.md).
";

fn page() -> String {
    fn walk(command: &mut clap::Command, path: &str, page: &mut String, global: &mut String) {
        let path = format!("{path} {}", command.get_name()).trim_start().to_owned();
        // The same width wherever it is written.
        let help = command.clone().bin_name(&path).term_width(100).render_help().to_string();
        let sections: Vec<&str> = help.trim_end().split("\n\n").collect();
        let (flags, rest): (Vec<&str>, Vec<&str>) =
            sections.into_iter().partition(|section| section.starts_with("Global options:"));
        if let Some(flags) = flags.first() {
            (*flags).clone_into(global);
        }
        page.push_str(&format!("\n## {path}\n\n```\n{}\n```\n", rest.join("\n\n")));
        for below in command.get_subcommands_mut() {
            if !below.is_hide_set() && below.get_name() != "help" {
                walk(below, &path, page, global);
            }
        }
    }
    let (mut page, mut global) = (HEAD.to_owned(), String::new());
    let mut root = Cli::command();
    root.build();
    walk(&mut root, "", &mut page, &mut global);
    page.push_str(&format!("\n## Flags of every command\n\n```\n{global}\n```\n"));
    page
}

#[test]
fn the_page_of_commands_is_what_the_program_says() {
    let page = page();
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    let written = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(written == page, "docs/reference.md is stale: `cargo xtask reference` writes it anew");
}
