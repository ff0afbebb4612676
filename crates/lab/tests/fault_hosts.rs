//! Some cells of the fault matrix (`cargo xtask faults` runs all of it): those that have shown most, in a few minutes.
//!
//! Blocks 9 and 21, side by side.

use lab::Lane;
use lab::faults_matrix::{self, Cell, Outcome, render};

const CELLS: [&str; 12] = [
    "kill-controller:stage",
    "kill-controller:window",
    "kill-controller-back:healthy",
    "interrupt-twice:healthy",
    "power-cycle:window",
    "cut-host:window",
    "kill-spare:healthy",
    "stop-sshd:confirm",
    "fill-disk:open",
    "exits:start",
    "crashes:soak:batch",
    "kill-controller:offline:leader",
];

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn a_hotfix_ends_well_or_is_taken_back_whatever_goes_wrong() {
    let cells = Cell::select(&CELLS.map(str::to_owned)).unwrap();
    assert_eq!(cells.len(), CELLS.len());
    let lanes = [9, 21].map(|block| Lane { set: format!("faultst-{block}"), block });
    let outcomes = faults_matrix::run(&lanes, &cells, &mut |outcome| println!("{outcome}"));
    println!("{}", render(&outcomes));
    assert!(outcomes.iter().all(Outcome::is_as_it_must_be));
}
