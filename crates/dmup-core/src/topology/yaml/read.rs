//! Text to a tree of nodes that know where they stand.
//!
//! Bounded: size of the text, depth, and number of nodes (aliases are copied, so that a small
//! text could otherwise grow without end). Keys that occur twice are an error, as for TiUP.

use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

/// Largest text that is looked at.
const TEXT_BYTES: usize = 4 << 20;
const DEPTH: usize = 64;
const NODES: usize = 400_000;

/// Where something stands in a text.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// In bytes from the start of the text.
    pub offset: usize,
    /// In bytes; at least 1.
    pub length: usize,
}

/// A piece of YAML and its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// Where it begins.
    pub(crate) place: Place,
    /// What it is.
    pub(crate) kind: Kind,
}

/// What a piece of YAML is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// One word or text; `plain` if it was not quoted, so that its look decides its type.
    Scalar {
        /// Without quotes and escapes.
        text: String,
        /// Not quoted.
        plain: bool,
    },
    /// A list.
    Seq(Vec<Node>),
    /// Keys, which are scalars, and values.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// The text of a scalar; empty for lists and maps.
    pub(crate) fn text(&self) -> &str {
        match &self.kind {
            Kind::Scalar { text, .. } => text,
            Kind::Seq(_) | Kind::Map(_) => "",
        }
    }

    /// The value under a key of a map.
    pub(crate) fn entry(&self, key: &str) -> Option<&Self> {
        match &self.kind {
            Kind::Map(entries) => {
                entries.iter().find(|(name, _)| name.text() == key).map(|(_, value)| value)
            }
            Kind::Scalar { .. } | Kind::Seq(_) => None,
        }
    }

    /// The node that a path such as `master_servers.0.port` leads to, or the last one on the way that exists.
    pub(crate) fn locate(&self, path: &str) -> Place {
        let mut here = self;
        for part in path.split('.') {
            let next = match &here.kind {
                Kind::Map(_) => here.entry(part),
                Kind::Seq(items) => part.parse().ok().and_then(|at: usize| items.get(at)),
                Kind::Scalar { .. } => None,
            };
            match next {
                Some(node) => here = node,
                None => break,
            }
        }
        here.place
    }

    /// Whether it says "nothing here".
    pub(crate) fn is_null(&self) -> bool {
        match &self.kind {
            Kind::Scalar { text, plain } => {
                *plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
            }
            Kind::Seq(_) | Kind::Map(_) => false,
        }
    }
}

/// Text that is no YAML, or too much of it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {}: {why}", .place.line)]
pub struct YamlError {
    /// What is wrong.
    pub why: String,
    /// Where.
    pub place: Place,
}

/// Reads the first document of a text. An empty text is an empty map.
///
/// # Errors
///
/// [`YamlError`] at the first place that is not understood.
pub(crate) fn parse(text: &str) -> Result<Node, YamlError> {
    if text.len() > TEXT_BYTES {
        let why = format!("{} bytes are more than the {TEXT_BYTES} that are looked at", text.len());
        return Err(YamlError { why, place: Place::default() });
    }
    let places = Places::of(text);
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| YamlError {
            why: error.info().to_owned(),
            place: places.at(*error.marker(), 1),
        })?;
        let length = if span.start.line() == span.end.line() {
            span.end.col() - span.start.col().min(span.end.col())
        } else {
            1
        };
        let place = places.at(span.start, length.max(1));
        if builder.take(event, place)? {
            break;
        }
    }
    Ok(builder
        .root
        .unwrap_or(Node { place: places.at(Marker::new(0, 1, 0), 1), kind: Kind::Map(Vec::new()) }))
}

/// Byte offsets of lines, to turn the parser's characters into bytes.
struct Places<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
}

impl<'a> Places<'a> {
    fn of(text: &'a str) -> Self {
        let mut line_starts = vec![0];
        line_starts.extend(text.match_indices('\n').map(|(at, _)| at + 1));
        Self { text, line_starts }
    }

    fn at(&self, marker: Marker, length_chars: usize) -> Place {
        let start =
            self.line_starts.get(marker.line().max(1) - 1).copied().unwrap_or(self.text.len());
        let line = self.text[start..].split('\n').next().unwrap_or_default();
        let byte = |column: usize| line.char_indices().nth(column).map_or(line.len(), |(at, _)| at);
        let (from, to) = (byte(marker.col()), byte(marker.col() + length_chars));
        Place {
            line: marker.line().max(1),
            column: marker.col() + 1,
            offset: start + from,
            length: (to - from).max(1),
        }
    }
}

/// A list or map that has begun.
struct Open {
    node: Node,
    anchor: usize,
    key: Option<Node>,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: BTreeMap<usize, (Node, usize)>,
    nodes: usize,
    root: Option<Node>,
}

impl Builder {
    /// Takes one event; true after the end of the first document.
    fn take(&mut self, event: Event<'_>, place: Place) -> Result<bool, YamlError> {
        match event {
            Event::Nothing | Event::StreamStart | Event::DocumentStart(_) => {}
            Event::DocumentEnd | Event::StreamEnd => return Ok(true),
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(YamlError {
                        why: "an alias to something that is not complete yet".to_owned(),
                        place,
                    });
                };
                self.count(size, place)?;
                self.add(node, 0, place)?;
            }
            Event::Scalar(text, style, anchor, tag) => {
                // An explicit `!!str` makes text of anything; other tags say what the look says already.
                let text_by_tag =
                    tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                let plain = matches!(style, ScalarStyle::Plain) && !text_by_tag;
                let kind = Kind::Scalar { text: text.into_owned(), plain };
                self.count(1, place)?;
                self.add(Node { place, kind }, anchor, place)?;
            }
            Event::SequenceStart(anchor, _) => self.begin(Kind::Seq(Vec::new()), anchor, place)?,
            Event::MappingStart(anchor, _) => self.begin(Kind::Map(Vec::new()), anchor, place)?,
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(Open { mut node, anchor, .. }) = self.open.pop() {
                    merge_inherited(&mut node)?;
                    self.add(node, anchor, place)?;
                }
            }
        }
        Ok(false)
    }

    fn count(&mut self, more: usize, place: Place) -> Result<(), YamlError> {
        self.nodes += more;
        if self.nodes > NODES {
            return Err(YamlError { why: format!("more than {NODES} values"), place });
        }
        Ok(())
    }

    fn begin(&mut self, kind: Kind, anchor: usize, place: Place) -> Result<(), YamlError> {
        if self.open.len() >= DEPTH {
            return Err(YamlError { why: format!("nested deeper than {DEPTH} levels"), place });
        }
        self.count(1, place)?;
        self.open.push(Open { node: Node { place, kind }, anchor, key: None });
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize, place: Place) -> Result<(), YamlError> {
        if anchor > 0 {
            let size = size_of(&node);
            self.count(size, place)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        let Some(Open { node: parent, key, .. }) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut parent.kind {
            Kind::Seq(items) => items.push(node),
            Kind::Map(entries) => match key.take() {
                Some(name) => entries.push((name, node)),
                None if matches!(node.kind, Kind::Scalar { .. }) => *key = Some(node),
                None => {
                    return Err(YamlError {
                        why: "a list or map as a key".to_owned(),
                        place: node.place,
                    });
                }
            },
            Kind::Scalar { .. } => {}
        }
        Ok(())
    }
}

fn size_of(node: &Node) -> usize {
    match &node.kind {
        Kind::Scalar { .. } => 1,
        Kind::Seq(items) => 1 + items.iter().map(size_of).sum::<usize>(),
        Kind::Map(entries) => {
            1 + entries.iter().map(|(_, value)| 1 + size_of(value)).sum::<usize>()
        }
    }
}

/// Refuses keys that occur twice and carries out `<<: *anchor`: what is written here wins over what is inherited.
fn merge_inherited(node: &mut Node) -> Result<(), YamlError> {
    let Kind::Map(entries) = &mut node.kind else { return Ok(()) };
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (key, _) in entries.iter() {
        if let Some(line) = seen.insert(key.text().to_owned(), key.place.line) {
            let why = format!("key `{}` occurs twice, first in line {line}", key.text());
            return Err(YamlError { why, place: key.place });
        }
    }
    let is_merge =
        |key: &Node| matches!(&key.kind, Kind::Scalar { text, plain: true } if text == "<<");
    let Some(at) = entries.iter().position(|(key, _)| is_merge(key)) else { return Ok(()) };
    let (_, inherited) = entries.remove(at);
    let place = inherited.place;
    let bases = match inherited.kind {
        Kind::Seq(items) => items,
        kind @ (Kind::Map(_) | Kind::Scalar { .. }) => vec![Node { place, kind }],
    };
    let mut have: BTreeSet<String> = entries.iter().map(|(key, _)| key.text().to_owned()).collect();
    for base in bases {
        let Kind::Map(base_entries) = base.kind else {
            return Err(YamlError {
                why: "`<<` takes a map or a list of maps".to_owned(),
                place: base.place,
            });
        };
        for (key, value) in base_entries {
            if have.insert(key.text().to_owned()) {
                entries.push((key, value));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_knows_its_place() {
        let tree =
            parse("global:\n  user: tidb\nmaster_servers:\n  - host: \"ä\" \n    port: 8261\n")
                .unwrap();
        let place = tree.locate("master_servers.0.port");
        assert_eq!((place.line, place.column, place.length), (5, 11, 4));
        let place = tree.locate("master_servers.0.no_such_key");
        assert_eq!(place.line, 4);
    }

    #[test]
    fn keys_that_occur_twice_are_refused_with_both_lines() {
        let error = parse("a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!(error.to_string(), "line 3: key `a` occurs twice, first in line 1");
    }

    #[test]
    fn anchors_and_merge_keys_are_understood() {
        let tree = parse("x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  b: 3\n").unwrap();
        assert_eq!(tree.entry("y").unwrap().entry("a").unwrap().text(), "1");
        assert_eq!(tree.entry("y").unwrap().entry("b").unwrap().text(), "3");
    }

    #[test]
    fn a_text_cannot_grow_without_end() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..9 {
            let alias = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![alias; 10].join(","));
        }
        assert!(parse(&bomb).unwrap_err().why.contains("values"));
        assert!(parse(&"[".repeat(1000)).is_err());
        let deep: String = (0..100).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
        assert!(parse(&deep).unwrap_err().why.contains("nested"));
    }

    #[test]
    fn broken_text_is_an_error_with_its_line() {
        assert_eq!(parse("a: 1\nb: [1, 2\nc: 3\n").unwrap_err().place.line.min(3), 3);
        assert!(parse("\t- x").is_err() || parse("a:\n\t- x").is_err());
        assert_eq!(parse("").unwrap().kind, Kind::Map(Vec::new()));
    }
}
