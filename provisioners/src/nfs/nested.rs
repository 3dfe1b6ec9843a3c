//! Shares within shares: with `/export` and `/export/team` both in use, a directory of the one may hold all of the other.
//!
//! A share is known by the driver's directory at its root, whatever server, address or path leads there: no volume's
//! directory has one in it, and none is on the way to it. Of configured shares that have none yet the path says where they
//! are.

use std::time::Duration;

use super::client::{Fault, Fh, Kind, Node, Outcome, Status};
use super::share::{OWN, Own, Share, Told};
use super::store::{Found, Store};
use super::tree::{Problem, Visit, walk};
use crate::{Ctx, Error, Result};

/// How long is looked for shares below a volume. A tree that takes longer is looked at again when it is removed,
/// directory by directory.
const LOOK: Duration = Duration::from_secs(120);

/// Whether a directory is a share's root.
pub(super) fn is_root(share: &Share, dir: &Fh) -> Outcome<bool> {
    Ok(share.look(dir, OWN.as_bytes())?.is_some_and(|node| node.attr.kind == Kind::Directory))
}

/// Why a directory is not touched.
pub(super) fn refusal(share: &Share, dir: &str, what: &str) -> Error {
    Error::Refused(format!(
        "{dir} on {} {what} (it has a directory {OWN}); volumes of two shares must not be within each other: nothing was made or removed. Take that share out of use (delete its volumes, then {OWN}), or set onDelete: retain",
        share.place()
    ))
}

impl Store {
    /// Refuses a directory that another configured share is in, or that is in one, as their paths say.
    pub(super) fn check_paths(&self, share: &Share, dir: &str) -> Result<()> {
        let place = format!("{}/{dir}/", share.spec.path.trim_end_matches('/'));
        let top = format!("{}/", share.spec.path.trim_end_matches('/'));
        for other in self.shares().iter().filter(|other| other.configured && other.id != share.id) {
            let root = format!("{}/", other.spec.path.trim_end_matches('/'));
            let same = other.spec.server == share.spec.server;
            let between = root.starts_with(&top) && root != top;
            if same && between && (root.starts_with(&place) || place.starts_with(&root)) {
                return Err(Error::Refused(format!(
                    "{dir} on {} is {} share {}; volumes of two shares must not be within each other: nothing was made or removed",
                    share.place(),
                    if root.starts_with(&place) { "above" } else { "within" },
                    format_args!("{} ({})", other.id, other.place())
                )));
            }
        }
        Ok(())
    }

    /// Refuses to move or remove a volume's directory that another share is in, or that is in one.
    pub(super) fn check_apart(&self, ctx: &Ctx, volume: &Found, dir: &Node) -> Result<()> {
        let (share, path) = (&volume.share, volume.record.dir.as_str());
        self.check_paths(share, path)?;
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        for ancestor in above {
            let node = share.walk(&volume.own.root, ancestor).told(share, "looking for a directory")?;
            if let Some(node) = node
                && is_root(share, &node.fh).told(share, "looking for other shares")?
            {
                return Err(refusal(share, path, &format!("is within {ancestor}, another share's root")));
            }
        }
        if is_root(share, &dir.fh).told(share, "looking for other shares")? {
            return Err(refusal(share, path, "is another share's root"));
        }
        ctx.stage("looking for other shares in the directory");
        let limit = Ctx::with_limit(LOOK);
        let trusted = counts_directories(share, &volume.own).told(share, "looking for other shares")?;
        if trusted && dir.attr.links == 2 {
            return Ok(());
        }
        let mut visit = Roots { top: dir.attr.fsid, trusted, found: None, at: String::new() };
        let walked = walk(&limit, share, &dir.fh, String::new(), &mut visit);
        if let Some(what) = visit.found {
            return Err(refusal(share, path, &what));
        }
        ctx.check()?;
        match walked {
            // What goes away meanwhile is none.
            Err(Problem::Fault(fault)) if is_gone(&fault) => Ok(()),
            Err(Problem::Fault(fault)) if fault.is(Status::ACCESS) || fault.is(Status::PERM) => {
                Err(Error::Refused(format!(
                    "{path}{} on {} cannot be looked into ({fault}), so it is not known whether another share is in it; nothing was removed. Let this client's user read it (its mode and owner; no_root_squash, or the share's uid and gid), or remove it on the server",
                    visit.at,
                    share.place()
                )))
            }
            // It takes too long: the removal looks, too.
            Err(Problem::Error(_)) if limit.check().is_err() => Ok(()),
            other => other.map_err(|problem| problem.told(share, "looking for other shares")),
        }
    }
}

fn is_gone(fault: &Fault) -> bool {
    fault.is_gone() || fault.is(Status::BAD_COOKIE)
}

/// Whether the links of a directory count the directories in it, as they do on most file systems: known by the driver's
/// own, which has some.
fn counts_directories(share: &Share, own: &Own) -> Outcome<bool> {
    let Some(top) = share.look(&own.root, OWN.as_bytes())? else { return Ok(false) };
    let entries = share.entries(&top.fh)?;
    let is_dir = |node: &Option<Node>| node.as_ref().is_none_or(|node| node.attr.kind == Kind::Directory);
    let inner = entries.iter().filter(|entry| is_dir(&entry.node)).count();
    Ok(inner > 0 && top.attr.links as usize == inner + 2)
}

/// Looks for roots of shares and for other file systems.
struct Roots {
    top: (u64, u64),
    trusted: bool,
    found: Option<String>,
    /// The directory that is looked into.
    at: String,
}

impl Visit for Roots {
    type Dir = String;

    fn entry(&mut self, within: &String, name: &[u8], node: &Node) -> Result<Option<String>, Problem> {
        if node.attr.kind != Kind::Directory {
            return Ok(None);
        }
        let path = format!("{within}/{}", String::from_utf8_lossy(name));
        if name == OWN.as_bytes() {
            self.found = Some(format!("holds another share's root, .{within}"));
            return Err(Problem::Stopped);
        }
        if node.attr.fsid != self.top {
            self.found = Some(format!("holds another file system, mounted at .{path}"));
            return Err(Problem::Stopped);
        }
        if self.trusted && node.attr.links == 2 {
            return Ok(None);
        }
        self.at.clone_from(&path);
        Ok(Some(path))
    }
}
