//! Every target over its corpus and a few thousand mutations of it: what `cargo fuzz` does for hours, in seconds.
//!
//! The generator is seeded: a failure names target, round and input, and comes again.
#![allow(clippy::unwrap_used, reason = "the whole file is a test")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fuzz_entries::{TARGETS, Target};

/// Targets that write files take long for each.
fn rounds(target: &Target) -> u32 {
    match target.name {
        "package" | "audit" | "known_hosts" => 100,
        _ => 500,
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

const WORDS: [&[u8]; 16] = [
    b"\n",
    b": ",
    b"- ",
    b"\"",
    b"{",
    b"]",
    b"null",
    b"-1",
    b"99999999999999999999",
    b"0",
    b"../",
    b"\0",
    b"\xff\xfe",
    "\u{202e}é".as_bytes(),
    b"&a *a",
    b"\\u0000",
];

fn mutated(seeds: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seeds[dice.below(seeds.len())].clone();
    for _ in 0..=dice.below(4) {
        let range = dice.range(bytes.len());
        match dice.below(7) {
            0 => drop(bytes.drain(range)),
            1 => {
                let copy = bytes[range.clone()].to_vec();
                drop(bytes.splice(range.end..range.end, copy));
            }
            2 => drop(
                bytes.splice(range.start..range.start, WORDS[dice.below(WORDS.len())].to_vec()),
            ),
            3 => drop(bytes.splice(range, WORDS[dice.below(WORDS.len())].to_vec())),
            4 => {
                let other = &seeds[dice.below(seeds.len())];
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
    bytes
}

#[test]
fn no_target_panics_on_its_corpus_or_on_mutations_of_it() {
    for target in TARGETS {
        let seeds = corpus(target);
        assert!(!seeds.is_empty(), "{} has no corpus", target.name);
        let mut dice = Dice(0x00C0_FFEE);
        let mutations = (0..rounds(target)).map(|_| mutated(&seeds, &mut dice));
        for (round, input) in seeds.iter().cloned().chain(mutations).enumerate() {
            let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
            assert!(
                outcome.is_ok(),
                "{} panics in round {round} on {:?}",
                target.name,
                String::from_utf8_lossy(&input)
            );
        }
    }
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
