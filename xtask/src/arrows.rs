//! Which crate may depend on which, and on what none of them may: read from `cargo metadata`, as `ARCHITECTURE.md` has it.
//!
//! Only dependencies of the built product count, those of tests do not.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde::Deserialize;

/// Who may depend on whom within the workspace. What is not listed is not allowed.
const ARROWS: &[(&str, &[&str])] = &[
    ("dmup-core", &[]),
    ("dmup-wire", &["dmup-core"]),
    ("dmup-agent", &["dmup-core", "dmup-wire"]),
    ("dmup-exec", &["dmup-core", "dmup-wire"]),
    ("dmup-remote", &["dmup-core", "dmup-exec", "dmup-wire"]),
    ("dmup-state", &["dmup-core"]),
    ("dmup-mirror", &["dmup-core"]),
    (
        "dmup",
        &[
            "dmup-agent",
            "dmup-core",
            "dmup-exec",
            "dmup-mirror",
            "dmup-remote",
            "dmup-state",
            "dmup-wire",
        ],
    ),
    (
        "fuzz-entries",
        &["dmup-agent", "dmup-core", "dmup-mirror", "dmup-remote", "dmup-state", "dmup-wire"],
    ),
    ("lookalike", &[]),
    ("lab", &["lookalike", "dmup-core"]),
    ("xtask", &["lab"]),
];

/// What must not be reached from where, by whatever path.
const UNREACHABLE: &[(&str, &[&str])] = &[
    ("dmup-core", &["tokio", "reqwest", "russh", "hyper", "ureq", "tempfile"]),
    ("dmup-wire", &["tokio", "reqwest", "russh"]),
    ("dmup-agent", &["tokio", "reqwest", "russh"]),
    ("dmup-state", &["reqwest", "russh"]),
    ("dmup-exec", &["russh", "reqwest"]),
    ("dmup", &["lab", "lookalike", "xtask", "openssl-sys", "native-tls"]),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

/// Direct dependencies by name; several versions of a crate are one here.
struct Graph {
    workspace: BTreeSet<String>,
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn read() -> Self {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version=1"])
            .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Metadata = serde_json::from_slice(&output.stdout).unwrap();
        let names: BTreeMap<&str, &str> = metadata
            .packages
            .iter()
            .map(|package| (package.id.as_str(), package.name.as_str()))
            .collect();
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in &metadata.resolve.nodes {
            let from = edges.entry(names[node.id.as_str()].to_owned()).or_default();
            for dependency in &node.deps {
                if dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()) {
                    from.insert(names[dependency.pkg.as_str()].to_owned());
                }
            }
        }
        let workspace =
            metadata.workspace_members.iter().map(|id| names[id.as_str()].to_owned()).collect();
        Self { workspace, edges }
    }

    /// A way from one crate to another, if there is one.
    fn path(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let mut seen = BTreeSet::from([from.to_owned()]);
        let mut ways = vec![vec![from.to_owned()]];
        while let Some(way) = ways.pop() {
            let last = way.last().unwrap();
            if last == to {
                return Some(way);
            }
            for next in &self.edges[last] {
                if seen.insert(next.clone()) {
                    ways.push([way.clone(), vec![next.clone()]].concat());
                }
            }
        }
        None
    }
}

#[test]
fn arrows_go_one_way() {
    let graph = Graph::read();
    let listed: BTreeSet<String> = ARROWS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(
        graph.workspace, listed,
        "crates of the workspace, and crates with a line in ARROWS"
    );
    for (from, allowed) in ARROWS {
        for to in graph.edges[*from].intersection(&graph.workspace) {
            assert!(allowed.contains(&to.as_str()), "{from} must not depend on {to}");
        }
    }
}

#[test]
fn what_must_not_be_reached_is_not_reached() {
    let graph = Graph::read();
    for (from, unwanted) in UNREACHABLE {
        for to in *unwanted {
            if let Some(way) = graph.path(from, to) {
                panic!("{from} reaches {to}: {}", way.join(" → "));
            }
        }
    }
}
