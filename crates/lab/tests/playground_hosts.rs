//! The main job without hosts: plain processes on loopback addresses, real etcd.
//!
//! Needs no root; it is among the host tests since it needs built programs.

#[test]
#[ignore = "needs built programs; `cargo xtask test` runs it"]
fn a_hotfix_of_local_hosts_loses_no_row() {
    let mut said = String::new();
    let outcome = lab::playground::run(&mut |line| {
        said.push_str(line);
        said.push('\n');
    });
    if let Err(error) = outcome {
        panic!("{error}\n{said}");
    }
}
