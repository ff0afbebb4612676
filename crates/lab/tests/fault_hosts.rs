//! Some cells of the fault matrix (`cargo xtask faults` runs all of it): one fault of every kind, each phase that matters.
//!
//! Block 9.

use lab::faults_matrix::{self, Cell, Lane, Outcome, render};

const CELLS: [&str; 8] = [
    "kill-controller:stage",
    "kill-controller:window",
    "kill-controller-back:healthy",
    "interrupt:window",
    "interrupt-twice:healthy",
    "power-cycle:window",
    "exits:start",
    "kill-controller:offline:leader",
];

#[test]
#[ignore = "needs root and systemd-nspawn"]
fn a_hotfix_ends_well_or_is_taken_back_whatever_goes_wrong() {
    let cells = Cell::select(&CELLS.map(str::to_owned)).unwrap();
    assert_eq!(cells.len(), CELLS.len());
    let lanes = [Lane { set: "faultst".to_owned(), block: 9 }];
    let outcomes = faults_matrix::run(&lanes, &cells, &mut |outcome| println!("{outcome}"));
    println!("{}", render(&outcomes));
    assert!(outcomes.iter().all(Outcome::is_as_it_must_be));
}
