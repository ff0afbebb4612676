//! Every target over its corpus and a few hundred mutations of it: what `cargo fuzz` does for hours, in seconds.
//!
//! The generator is seeded: a failure names target, round and input, and comes again.
#![allow(clippy::unwrap_used, reason = "the whole file is a test")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fuzz_entries::{TARGETS, Target};

/// More where one is fast: those that write files and those that lay a topology out are not.
fn rounds(target: &Target) -> u32 {
    match target.name {
        "package" | "backup" => 30,
        "audit" | "known_hosts" => 100,
        "topology" | "meta" => 150,
        _ => 400,
    }
}

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = fuzz_folder().join("corpus").join(target.name);
    let mut paths: Vec<PathBuf> =
        fs_err::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs_err::read(path).unwrap()).collect()
}

/// xorshift64*: enough to choose places and bytes.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound.max(1) as u64).unwrap()
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let from = self.below(length + 1);
        let most = (length - from).min(64);
        from..from + self.below(most + 1)
    }
}

/// Of seeds whose every word is changed.
const SMALL_BYTES: usize = 4096;
/// Of seeds whose every word is also cut and spoiled.
const TINY_BYTES: usize = 600;

/// Marks that structure hangs on.
const MARKS: [&[u8]; 10] =
    [b"\n", b": ", b"- ", b"\"", b"{", b"]", b"\0", b"\xff\xfe", b"&a *a", b"\\u0000"];

/// Words for the place of others. Text that is not ASCII shows slices at bytes that begin no character.
const WORDS: [&str; 20] = [
    "",
    "0",
    "1",
    "-1",
    "1.5",
    "1e",
    "1e99",
    "99999999999999999999",
    "null",
    "true",
    "x",
    ":",
    "%",
    "%4",
    "../",
    "é",
    "%é",
    "\u{202e}日本",
    "[code=é:",
    "v1é.0",
];

fn any<'a, T>(of: &'a [T], dice: &mut Dice) -> &'a T {
    &of[dice.below(of.len())]
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.+/%@".contains(&byte) || !byte.is_ascii()
}

/// Each word of a small seed once in the place of another, and in tiny seeds each spoiled within: no field is left to chance.
fn every_word_changed(seed: &[u8], dice: &mut Dice) -> Vec<Vec<u8>> {
    let mut inputs = Vec::new();
    let mut from = 0;
    for word in seed.split(|byte| !is_word(*byte)) {
        let end = from + word.len();
        if !word.is_empty() && seed.len() <= SMALL_BYTES {
            inputs.push([&seed[..from], any(&WORDS, dice).as_bytes(), &seed[end..]].concat());
        }
        if !word.is_empty() && seed.len() <= TINY_BYTES {
            let at = from + dice.below(word.len());
            inputs.push([&seed[..at], &seed[end..]].concat());
            inputs.push([&seed[..at + 1], "é".as_bytes(), &seed[at + 1..]].concat());
        }
        from = end + 1;
    }
    inputs
}

/// A number, name, path or address somewhere in there; with a colon it is one word or two.
fn word(bytes: &[u8], dice: &mut Dice) -> std::ops::Range<usize> {
    let with_colons = dice.below(3) == 0;
    let is_part = |byte: &u8| is_word(*byte) || (with_colons && *byte == b':');
    let at = dice.below(bytes.len() + 1);
    let from = bytes[..at].iter().rposition(|byte| !is_part(byte)).map_or(0, |it| it + 1);
    let end = bytes[at..].iter().position(|byte| !is_part(byte)).map_or(bytes.len(), |it| at + it);
    from..end
}

fn line(bytes: &[u8], dice: &mut Dice) -> std::ops::Range<usize> {
    let at = dice.below(bytes.len() + 1);
    let from = bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |it| it + 1);
    let end = bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |it| at + it);
    from..end
}

/// Changes a word or a line: what is around it can still be read, so later stages see it.
fn change_word(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], dice: &mut Dice) {
    let range = word(bytes, dice);
    let old = bytes[range.clone()].to_vec();
    let new = match dice.below(8) {
        0..=2 => any(&WORDS, dice).as_bytes().to_vec(),
        3 => old[..dice.below(old.len() + 1)].to_vec(),
        4 => old.repeat(1 << dice.below(8)),
        5 => {
            let at = dice.below(old.len() + 1);
            [&old[..at], any(&WORDS, dice).as_bytes(), &old[at..]].concat()
        }
        6 => {
            let other = any(seeds, dice);
            other[word(other, dice)].to_vec()
        }
        _ => {
            let line = line(bytes, dice);
            let (end, length) = (line.end, line.len());
            match dice.below(3) {
                0 => drop(bytes.drain(end - dice.below(length + 1)..end)),
                1 => drop(bytes.drain(line)),
                _ => {
                    let copy = [b"\n", &bytes[line]].concat();
                    drop(bytes.splice(end..end, copy));
                }
            }
            return;
        }
    };
    drop(bytes.splice(range, new));
}

fn change_bytes(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], dice: &mut Dice) {
    let range = dice.range(bytes.len());
    match dice.below(7) {
        0 => drop(bytes.drain(range)),
        1 => {
            let copy = bytes[range.clone()].to_vec();
            drop(bytes.splice(range.end..range.end, copy));
        }
        2 => drop(bytes.splice(range.start..range.start, any(&MARKS, dice).to_vec())),
        3 => drop(bytes.splice(range, any(&MARKS, dice).to_vec())),
        4 => {
            let other = any(seeds, dice);
            let piece = dice.range(other.len());
            drop(bytes.splice(range, other[piece].to_vec()));
        }
        5 => bytes.truncate(range.end),
        _ => {
            for byte in &mut bytes[range] {
                *byte = dice.roll().to_be_bytes()[0];
            }
        }
    }
}

fn mutated(seeds: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = any(seeds, dice).clone();
    let change = if dice.below(3) == 0 { change_bytes } else { change_word };
    for _ in 0..=dice.below(3) {
        change(&mut bytes, seeds, dice);
    }
    bytes
}

/// The first input that a target panics on.
fn panic_of(target: &Target) -> Option<String> {
    let seeds = corpus(target);
    assert!(!seeds.is_empty(), "{} has no corpus", target.name);
    let mut dice = Dice(0x00C0_FFEE);
    let words: Vec<Vec<u8>> =
        seeds.iter().flat_map(|seed| every_word_changed(seed, &mut dice)).collect();
    let mutations = (0..rounds(target)).map(|_| mutated(&seeds, &mut dice));
    seeds.iter().cloned().chain(words).chain(mutations).enumerate().find_map(|(round, input)| {
        catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).err()?;
        let input = String::from_utf8_lossy(&input);
        Some(format!("{} panics in round {round} on {input:?}", target.name))
    })
}

#[test]
fn no_target_panics_on_its_corpus_or_on_mutations_of_it() {
    let panics: Vec<String> = TARGETS.iter().filter_map(panic_of).collect();
    assert!(panics.is_empty(), "{}", panics.join("\n"));
}

#[test]
fn every_target_has_its_program_and_no_program_is_left_over() {
    let mut programs: Vec<String> = fs_err::read_dir(fuzz_folder().join("fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    programs.sort();
    let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    assert_eq!(programs, names);
    let manifest = fs_err::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
    for name in names {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
    }
}
