//! The trees beside `bin`, and which of them stay.
//!
//! ```text
//! bin             what the next start runs
//! bin.dmup        before a window what comes, after it what was there
//! bin.dmup.kept   the build before that one: the way back of a hotfix that a later one was to replace, and did not
//! ```
//!
//! So no more than two trees lie beside `bin`.

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_wire::message::{Prepare, Refusal, Switch};
use fs_err as fs;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::files::{remove, sync_folder};
use crate::hash::Hashes;
use crate::refuse::When;

/// Where the tree goes that stays.
pub(crate) fn kept(staged: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{staged}.kept"))
}

/// The build in a tree; none if there is no such executable.
fn build_in(
    tree: &Utf8Path,
    binary: &Utf8Path,
    hashes: &Hashes,
) -> Result<Option<Digest>, Refusal> {
    let path = tree.join(binary);
    let seen = hashes.of_existing(&path).when(|| format!("hash {path}"))?;
    Ok(seen.map(|(digest, _)| digest))
}

/// Frees the place of the tree that is to come; the build that the order keeps stays, wherever it lies. Harmless twice.
pub(crate) fn make_room(order: &Prepare) -> Result<(), Refusal> {
    let (hashes, kept) = (Hashes::default(), kept(&order.staged));
    let is_kept = |tree: &Utf8Path| -> Result<bool, Refusal> {
        let Some(keeps) = order.keeps.as_ref().filter(|it| **it != order.digest) else {
            return Ok(false);
        };
        Ok(build_in(tree, &order.binary, &hashes)?.as_ref() == Some(keeps))
    };
    if is_kept(&order.staged)? {
        remove(&kept)?;
        fs::rename(&order.staged, &kept).when(|| format!("keep {}", order.staged))?;
    } else {
        if !is_kept(&kept)? {
            remove(&kept)?;
        }
        remove(&order.staged)?;
    }
    Ok(())
}

/// Before a window: the build that is to come may be the one that was kept. Nothing that a unit can start is touched.
pub(crate) fn bring_forward(order: &Switch, hashes: &Hashes) -> Result<(), Refusal> {
    let kept = kept(&order.staged);
    let holds = |tree: &Utf8Path, build: &Digest| {
        Ok::<_, Refusal>(build_in(tree, &order.binary, hashes)?.as_ref() == Some(build))
    };
    if !holds(&order.live, &order.from)?
        || holds(&order.staged, &order.to)?
        || !holds(&kept, &order.to)?
    {
        return Ok(());
    }
    // Without a tree in its place there is nothing to exchange it for.
    let how = if order.staged.exists() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    renameat_with(CWD, kept.as_str(), CWD, order.staged.as_str(), how)
        .map_err(std::io::Error::from)
        .and_then(|()| order.staged.parent().map_or(Ok(()), sync_folder))
        .when(|| format!("bring {kept} to {}", order.staged))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::prepare;
    use crate::prepare::tests::deployed;

    const SCRIPT: &str = "#!/bin/sh\necho Release Version: v1\n";

    fn text(of: &str) -> String {
        format!("#!/bin/sh\necho {of}\n")
    }

    /// `bin`, the tree beside it and the one that is kept, by what their executables say.
    fn said(order: &Prepare) -> [Option<String>; 3] {
        [order.live.clone(), order.staged.clone(), kept(&order.staged)].map(|tree| {
            let text = fs::read_to_string(tree.join(&order.binary)).ok()?;
            Some(text.lines().last()?.trim_start_matches("echo ").to_owned())
        })
    }

    fn put(tree: &Utf8Path, order: &Prepare, of: &str) {
        let binary = tree.join(&order.binary);
        fs::create_dir_all(binary.parent().unwrap()).unwrap();
        fs::write(binary, text(of)).unwrap();
    }

    fn words(all: [Option<&str>; 3]) -> [Option<String>; 3] {
        all.map(|it| it.map(str::to_owned))
    }

    #[test]
    fn the_way_back_stays_however_often_a_later_build_is_prepared_and_others_go() {
        let new = Some("Release Version: v1");
        for (staged, lies_kept, keeps, then) in [
            (Some("older"), None, Some("older"), Some("older")),
            (Some("older"), Some("oldest"), Some("older"), Some("older")),
            (Some("failed"), Some("older"), Some("older"), Some("older")),
            (Some("older"), Some("oldest"), None, None),
            (Some("failed"), Some("oldest"), Some("lost"), None),
            (None, None, Some("older"), None),
        ] {
            let deployed = deployed(SCRIPT);
            let keeps = keeps.map(|it| Digest::of(text(it).as_bytes()));
            let order = Prepare { keeps, ..deployed.order.clone() };
            for (tree, of) in [(order.staged.clone(), staged), (kept(&order.staged), lies_kept)] {
                if let Some(of) = of {
                    put(&tree, &order, of);
                }
            }
            for _ in 0..2 {
                prepare(&order).unwrap();
                assert_eq!(
                    said(&order),
                    words([Some("old"), new, then]),
                    "{staged:?} {lies_kept:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_prepared_is_not_kept_a_second_time() {
        let deployed = deployed(SCRIPT);
        let keeps = Some(deployed.order.digest.clone());
        let order = Prepare { keeps, ..deployed.order.clone() };
        for _ in 0..2 {
            prepare(&order).unwrap();
            assert_eq!(said(&order)[2], None);
        }
    }
}
