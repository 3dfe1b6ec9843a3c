//! After a crash: interrupted deletions are finished, and what was half made is removed.

use std::fs;

use super::draft::clear;
use super::layout::Root;
use super::list::names;
use super::remove::remove_tree;
use super::store::Store;
use crate::Result;

impl Store {
    /// Cleans up all roots; says what it did.
    pub(super) fn recover(&self) -> Result<Vec<String>> {
        let mut done = Vec::new();
        for root in self.roots.iter().filter(|root| root.exists()) {
            if root.alone(|| self.recover_root(root, true, &mut done))?.is_none() {
                let path = root.path.display();
                done.push(format!("left older drafts in {path} alone: another process is using it"));
                self.recover_root(root, false, &mut done)?;
            }
        }
        Ok(done)
    }

    /// What cannot be cleaned up is said and left, so that it keeps nobody from using the rest. Not `alone`: another
    /// process, perhaps of an older version, is at work here, and only what is surely nobody's is removed.
    fn recover_root(&self, root: &Root, alone: bool, done: &mut Vec<String>) -> Result<()> {
        for name in names(&root.own("groups"), fs::FileType::is_file)? {
            if let Some(key) = name.strip_suffix(".pending").filter(|_| alone) {
                let what = format!("removed the snapshots of the incomplete group {}:{key}", root.name);
                done.push(outcome(what, self.finish_pending(root, key).map(drop)));
            }
        }
        for name in names(&root.own("trash"), |_| true)? {
            let what = format!("finished the interrupted deletion of {name} in root {}", root.name);
            done.push(outcome(what, remove_tree(&root.own("trash").join(&name))));
        }
        for name in names(&root.own("tmp"), |_| true)? {
            let what = format!("removed the half made {name} in root {}", root.name);
            match clear(root, &name, alone) {
                Ok(false) => {}
                other => done.push(outcome(what, other.map(drop))),
            }
        }
        Ok(())
    }
}

fn outcome(what: String, result: Result<()>) -> String {
    match result {
        Ok(()) => what,
        Err(error) => format!("could not be done: {what}: {error}"),
    }
}
