//! After a crash: interrupted deletions are finished, and what was half made is removed.

use std::fs;

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
            if root.alone(|| self.recover_root(root, &mut done))?.is_none() {
                done.push(format!("left {} alone: another process is using it", root.path.display()));
            }
        }
        Ok(done)
    }

    /// What cannot be cleaned up is said and left, so that it keeps nobody from using the rest.
    fn recover_root(&self, root: &Root, done: &mut Vec<String>) -> Result<()> {
        for name in names(&root.own("groups"), fs::FileType::is_file)? {
            if let Some(key) = name.strip_suffix(".pending") {
                let what = format!("removed the snapshots of the incomplete group {}:{key}", root.name);
                done.push(outcome(what, self.finish_pending(root, key).map(drop)));
            }
        }
        for (dir, what) in
            [("trash", "finished the interrupted deletion of"), ("tmp", "removed the half made")]
        {
            for name in names(&root.own(dir), |_| true)? {
                let what = format!("{what} {name} in root {}", root.name);
                done.push(outcome(what, remove_tree(&root.own(dir).join(&name))));
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
