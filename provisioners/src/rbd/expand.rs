//! Growing an image, also while it is in use: its clients learn of it by their watch.
//!
//! librbd grows the object map first, then the image. When it is killed between the two, the kernel's client does not take
//! the image's lock again ("object map size mismatch"), and the pod's writes fail, as soon as the watch of the killed one
//! has timed out. So who grows is noted before, beats while it lives, and grows by a connection that does nothing else.
//! Who finds the note of another waits a while for its end. Only where that one's beat has stopped is its connection
//! fenced, by which nothing can be lost but that growth, and the growth finished.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::alive::Verdict;
use super::fence::blocklist;
use super::record::{Found, GROWING, Growing, seal};
use super::site::Site;
use super::store::Store;
use crate::size::grown;
use crate::{CapacityRange, Ctx, Error, ExpandOutcome, Result, VolumeId};

/// The time between two beats.
const BEAT: Duration = Duration::from_millis(500);
/// A driver whose beat stands still for so long does not live, or hangs: well before its watch times out.
const STILL: Duration = Duration::from_secs(8);
/// The same for one that does not have the image open any more.
const CLOSED: Duration = Duration::from_secs(2);

impl Store {
    /// Grows a volume to the range. Never shrinks.
    pub(super) fn expand(&self, ctx: &Ctx, id: &VolumeId, range: CapacityRange) -> Result<ExpandOutcome> {
        let (site, found) = self.usable(id, ctx.secrets())?;
        let has = found.header.size;
        let wanted = grown(id, range, has)?;
        self.check_size(&site.session, super::capacity::data_pool(&found), wanted)?;
        if wanted > has || found.growing()?.is_some() {
            ctx.stage("growing");
            let found = end_of_others(ctx, &site, found)?;
            grow(&site, &found, wanted)?;
            tracing::info!(volume = %id, from = has, to = wanted, "grown");
        }
        Ok(ExpandOutcome { capacity: wanted, node_expansion_required: true })
    }
}

/// Waits for the end of a growth of another driver. One that is seen to be cut short is ended: its client is fenced.
fn end_of_others(ctx: &Ctx, site: &Site, mut found: Found) -> Result<Found> {
    let spec = found.handle.spec();
    let mut since = Instant::now();
    let begun = since;
    while let Some(growing) = found.growing()? {
        let (client, open) = (&growing.client, site.users(&found.header.image)?.is_watching(&growing.client));
        let still = since.elapsed();
        // A version without a beat grew by the connection that it did all with.
        let beats = growing.beat > 0;
        if (!open && still >= CLOSED) || (open && beats && still >= STILL) {
            end(site, &spec, client, open, beats)?;
            return Ok(found);
        }
        if begun.elapsed() > STILL + CLOSED {
            return Err(Error::Unavailable(format!(
                "volume {} is being grown by {client}, which has it open; repeat the call",
                found.handle
            )));
        }
        std::thread::sleep(BEAT);
        ctx.check()?;
        found = Store::usable_at(site, &found.handle)?;
        if found.growing()?.as_ref() != Some(&growing) {
            since = Instant::now();
        }
    }
    Ok(found)
}

/// Fences the client of a growth that was cut short, so that nothing of it comes later. One that did all by one connection
/// is fenced only if it is dead: it has this image open no more, but perhaps others.
fn end(site: &Site, spec: &str, client: &str, open: bool, alone: bool) -> Result<()> {
    if !alone && let Verdict::Lives(sign) = site.verdict(client, None)? {
        tracing::info!(image = %spec, %client, %sign, "a growth was cut short; its client lives and is not fenced");
        return Ok(());
    }
    tracing::warn!(image = %spec, %client, open, "a growth was cut short; its client is fenced");
    // Without leave to fence it is its watch that times out.
    match blocklist(site, client, None) {
        Err(Error::Denied(why)) if !open => {
            tracing::warn!(%why, "not fenced");
            Ok(())
        }
        other => other,
    }
}

fn grow(site: &Site, found: &Found, wanted: u64) -> Result<()> {
    let (id, spec) = (&found.header.image, found.handle.spec());
    let apart = site.session.another()?.site(&site.place)?;
    let first = note(&apart.session.address, 1)?;
    let before = found.header.meta.get(GROWING).map_or("", String::as_str);
    if !site.update_if(id, &[(GROWING, before)], &[(GROWING, first.as_bytes())], &[])? {
        return Err(Error::Unavailable(format!(
            "volume {} is being grown by another driver; repeat the call",
            found.handle
        )));
    }
    let beating = Beat::start(site, id, first, &apart.session.address)?;
    let image = apart.open(id)?;
    let size = image.size().map_err(|e| apart.fail(&format!("looking at {spec}"), e))?;
    if size < wanted {
        image.grow(wanted).map_err(|e| apart.fail(&format!("growing {spec}"), e))?;
    } else {
        // What was cut short is finished by taking the lock: librbd brings the object map to the image's size.
        image.lock().and_then(|()| image.unlock()).map_err(|e| apart.fail(&format!("locking {spec}"), e))?;
    }
    drop(image);
    let last = beating.stop()?;
    // Somebody who has ended this one has a note of its own.
    site.update_if(id, &[(GROWING, &last)], &[], &[GROWING]).map(drop)
}

fn note(client: &str, beat: u64) -> Result<String> {
    let bytes = seal(&Growing { client: client.to_owned(), beat })?;
    String::from_utf8(bytes).map_err(|e| Error::Internal(e.to_string()))
}

/// The beat of a growth; it ends when this is dropped.
struct Beat {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Result<String>>,
}

impl Beat {
    fn start(site: &Site, id: &str, first: String, client: &str) -> Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (site, id, client) = (site.clone(), id.to_owned(), client.to_owned());
        let work = move || {
            let mut last = first;
            let mut beat = 1;
            while stopped.recv_timeout(BEAT) == Err(mpsc::RecvTimeoutError::Timeout) {
                beat += 1;
                let next = note(&client, beat)?;
                if !site.update_if(&id, &[(GROWING, &last)], &[(GROWING, next.as_bytes())], &[])? {
                    break;
                }
                last = next;
            }
            Ok(last)
        };
        let thread = std::thread::Builder::new().name("rbd-grow-beat".into()).spawn(work);
        let thread = thread.map_err(|e| Error::io("starting the beat of a growth", e))?;
        Ok(Self { stop, thread })
    }

    /// Ends it; the last note that it wrote.
    fn stop(self) -> Result<String> {
        drop(self.stop);
        self.thread.join().unwrap_or_else(|_| Err(Error::Internal("the beat of a growth panicked".into())))
    }
}
