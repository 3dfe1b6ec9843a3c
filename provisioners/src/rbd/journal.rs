//! The journal of fences, and taking one back.

use jiff::Timestamp;

use super::fence::{FenceReport, Step};
use super::handle::{Handle, Place};
use super::locks::host_of;
use super::session::Session;
use super::site::Site;
use super::store::Store;
use crate::{Error, Result, Secrets};

/// The map of journal entries.
const JOURNAL: &str = "volumectl.journal";

impl Store {
    /// Takes a fence back. No such entry: [`Error::NotFound`]. From a host that is fenced itself the entry cannot be read:
    /// the fence of this host is taken back first, by the monitors, who listen to everybody.
    pub(super) fn undo_fence(&self, id: &str) -> Result<FenceReport> {
        let (mut missing, mut failed) = (Vec::new(), None);
        for cluster in self.sessions.clusters() {
            let session = self.sessions.get(&cluster.id, &Secrets::default());
            match session.and_then(|session| self.undo_in(&cluster.id, &session, id)) {
                Ok(report) => return Ok(report),
                Err(Error::NotFound(_)) => missing.push(cluster.id.clone()),
                // The entry may be another cluster's.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        Err(Error::NotFound(format!(
            "the journal of {} has no entry {id}; see `volumectl lock journal`",
            missing.join(", ")
        )))
    }

    fn undo_in(&self, cluster: &str, session: &std::sync::Arc<Session>, id: &str) -> Result<FenceReport> {
        let Some(own) = fence_of(session)? else { return undo_at(&self.sites_in(cluster)?, id, None) };
        tracing::warn!(fence = %own, "this host is fenced itself; its fence is taken back first");
        unblock(session, &own)?;
        let undone = session.another().and_then(|fresh| {
            let sites = self.sites_by(cluster, &fresh)?;
            undo_at(&sites, id, Some(&own))
        });
        if let Err(error) = &undone
            && let Err(again) = block(session, &own)
        {
            tracing::error!(%error, %again, fence = %own, "the fence of this host was taken back and not set again");
        }
        undone
    }

    /// Every journal entry, oldest first. One that cannot be read is named in the log and passed over.
    pub(super) fn journal(&self) -> Result<Vec<FenceReport>> {
        let mut all = Vec::new();
        for site in self.sites()? {
            for (_, entry) in site.entries::<FenceReport>(JOURNAL, "", "", 1000)? {
                match entry {
                    Ok(entry) => all.push(entry),
                    Err(error) => tracing::warn!(%error, "an entry of the journal is left out"),
                }
            }
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }
}

/// The entry of the blocklist, if there is one, that fences the whole host of a client.
fn fence_of(session: &Session) -> Result<Option<String>> {
    let host = host_of(&session.address);
    let fenced = super::locks::fenced(session)?;
    let whole = |entry: &&String| host_of(entry) == host && entry.ends_with(":0/0");
    Ok(fenced.keys().find(whole).cloned())
}

fn unblock(session: &Session, fence: &str) -> Result<()> {
    let arguments = [("blocklistop", "rm".into()), ("addr", fence.into())];
    session.command("osd blocklist", &arguments).map(drop)
}

fn block(session: &Session, fence: &str) -> Result<()> {
    let arguments = [("blocklistop", "add".into()), ("addr", fence.into())];
    session.command("osd blocklist", &arguments).map(drop)
}

/// Takes back the fence of an entry in one of these places. `done` is one that is taken back already: if the entry is not
/// of that, it is an error.
fn undo_at(sites: &[Site], id: &str, done: Option<&str>) -> Result<FenceReport> {
    for site in sites {
        let Some(report) = site.entry::<FenceReport>(JOURNAL, id)? else { continue };
        let fence = report.fence.clone();
        let mut journal = Journal { site: site.clone(), report };
        if let Some(done) = done {
            if host_of(done) != fence && host_of(done) != host_of(&fence) {
                return Err(Error::Refused(format!(
                    "this host is fenced ({done}), and entry {id} is about {fence}: undo the fence of this host first, or run this on another host"
                )));
            }
            let what =
                format!("from the fenced host: take the fence of {done} back: ceph osd blocklist rm {done}");
            journal.step(&what, || Ok(()))?;
        }
        if done.is_none_or(|done| host_of(done) != fence) {
            let what = format!("take the fence of {fence} back: ceph osd blocklist rm {fence}");
            journal.step(&what, || unblock(&site.session, &fence))?;
        }
        journal.report.undone = true;
        journal.write()?;
        return Ok(journal.report);
    }
    Err(Error::NotFound(format!("no entry {id}")))
}

/// An entry that is being written.
pub(super) struct Journal {
    site: Site,
    pub(super) report: FenceReport,
}

impl Journal {
    /// Begins an entry before anything is done.
    pub(super) fn start(site: &Site, handle: &Handle, fence: &str) -> Result<Self> {
        let place = Place { namespace: String::new(), ..site.place.clone() };
        let site = site.session.site(&place)?;
        let now = Timestamp::now();
        let id = format!("{}-{:04x}", now.strftime("%Y%m%dT%H%M%S"), now.subsec_nanosecond() & 0xffff);
        let report = FenceReport {
            id,
            image: handle.spec(),
            fence: fence.to_owned(),
            steps: Vec::new(),
            undone: false,
        };
        let journal = Self { site, report };
        journal.write()?;
        Ok(journal)
    }

    fn write(&self) -> Result<()> {
        self.site.note(JOURNAL, &self.report.id, &self.report)
    }

    /// Notes that a step begins, does it, and notes how it ended.
    pub(super) fn step(&mut self, what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.report.steps.push(Step {
            time: Timestamp::now(),
            what: what.to_owned(),
            result: "begun".into(),
        });
        self.write()?;
        let done = work();
        if let Some(step) = self.report.steps.last_mut() {
            step.result = done.as_ref().err().map_or_else(|| "done".into(), ToString::to_string);
        }
        self.write()?;
        let id = &self.report.id;
        done.map_err(|error| {
            tracing::warn!(%id, what, %error, "a step of the recovery failed");
            error
        })
    }
}
