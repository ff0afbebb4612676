//! A run on disk: `<folder>/{plan.json, journal.jsonl, report.json}`, and `texts/` if it writes files.

use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use dmup_core::digest::Digest;
use dmup_core::journal::Line;
use dmup_core::plan::Plan;
use dmup_core::report::Report;
use dmup_core::texts::Texts;
use fs_err as fs;

use crate::error::JournalError;
use crate::journal::{FileJournal, disk, sync_folder_of};

/// The folder of one run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: Utf8PathBuf,
}

impl RunFolder {
    /// Makes the folder with its plan, and begins the journal. The folder must not exist; its parent is made.
    ///
    /// # Errors
    ///
    /// [`JournalError::Disk`].
    pub fn create(path: &Utf8Path, plan: &Plan) -> Result<(Self, FileJournal), JournalError> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|source| disk("make", parent, source))?;
        }
        fs::create_dir(path).map_err(|source| disk("make", path, source))?;
        sync_folder_of(path)?;
        let text = serde_json::to_vec_pretty(plan).expect("plans are made of text and numbers");
        write_durably(&path.join("plan.json"), &text)?;
        let journal = FileJournal::create(&path.join("journal.jsonl"))?;
        Ok((Self { path: path.to_owned() }, journal))
    }

    /// A folder that is there.
    pub fn at(path: &Utf8Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where it is.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// The plan of the run.
    ///
    /// # Errors
    ///
    /// [`JournalError`].
    pub fn plan(&self) -> Result<Plan, JournalError> {
        let path = self.path.join("plan.json");
        let text = fs::read(&path).map_err(|source| disk("read", &path, source))?;
        let bad = |why: String| JournalError::BadPlan { path: path.clone(), why };
        let plan: Plan = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if plan.format > Plan::FORMAT {
            return Err(bad(format!("it has format {}, a later dmup wrote it", plan.format)));
        }
        Ok(plan)
    }

    /// The journal, to read it and to go on with it.
    ///
    /// # Errors
    ///
    /// [`JournalError`].
    pub fn journal(&self) -> Result<(FileJournal, Vec<Line>), JournalError> {
        FileJournal::open(&self.path.join("journal.jsonl"))
    }

    /// Keeps files that a window writes, readable to their owner only. They are not in the plan, which is shown and kept.
    ///
    /// # Errors
    ///
    /// [`JournalError::Disk`].
    pub fn keep_texts(&self, texts: &Texts) -> Result<(), JournalError> {
        let folder = self.path.join("texts");
        let owners_only = std::fs::Permissions::from_mode(0o700);
        fs::create_dir_all(&folder)
            .and_then(|()| fs::set_permissions(&folder, owners_only))
            .map_err(|source| disk("make", &folder, source))?;
        let content = serde_json::to_vec(texts).expect("texts are text and numbers");
        write_durably(&folder.join(texts.digest().as_str()), &content)
    }

    /// Files that were kept, by their digest.
    ///
    /// # Errors
    ///
    /// [`JournalError`], also if they are not what they were.
    pub fn texts(&self, digest: &Digest) -> Result<Texts, JournalError> {
        let path = self.path.join("texts").join(digest.as_str());
        let content = fs::read(&path).map_err(|source| disk("read", &path, source))?;
        let bad = |why: String| JournalError::BadPlan { path: path.clone(), why };
        let texts: Texts =
            serde_json::from_slice(&content).map_err(|error| bad(error.to_string()))?;
        if texts.digest() != *digest {
            return Err(bad("its content is not what its name says".to_owned()));
        }
        Ok(texts)
    }

    /// Writes the report beside the journal.
    ///
    /// # Errors
    ///
    /// [`JournalError::Disk`].
    pub fn write_report(&self, report: &Report) -> Result<(), JournalError> {
        let text = serde_json::to_vec_pretty(report).expect("reports are made of text and numbers");
        write_durably(&self.path.join("report.json"), &text)
    }

    /// The report, if the run got that far.
    pub fn report(&self) -> Option<Report> {
        serde_json::from_slice(&fs::read(self.path.join("report.json")).ok()?).ok()
    }
}

fn write_durably(path: &Utf8Path, content: &[u8]) -> Result<(), JournalError> {
    let part = Utf8PathBuf::from(format!("{path}.part"));
    fs::write(&part, content)
        .and_then(|()| fs::File::open(&part)?.sync_all())
        .and_then(|()| fs::rename(&part, path))
        .map_err(|source| disk("write", path, source))?;
    sync_folder_of(path)
}
