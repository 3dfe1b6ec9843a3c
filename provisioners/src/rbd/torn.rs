//! Removing what an interrupted creation has left, so that nothing else can be hit: another controller may complete the image
//! in the very moment, or make another one of its name.
//!
//! A mark is put on the image first, in one step with the question whether it is still half made; a creation is completed
//! in one step with the question whether there is no mark. From then on the image is nobody's, and all that follows is done
//! by its id: two that remove it do each other no harm, and whoever is killed is followed by the next call or a sweep.

use jiff::Timestamp;

use super::ffi::Errno;
use super::handle::Handle;
use super::record::{TORN, Torn, VOLUME, read_note, seal};
use super::site::{Header, Site};
use super::store::Store;
use super::wire::Encoder;
use crate::{Error, Result};

/// The object size of an image that is made only to be removed: 4 MiB as a power of two.
const ORDER: u8 = 22;

impl Store {
    /// Removes the half-made image of a name; `header` is what it was known by. If it was completed or removed meanwhile:
    /// [`Error::Unavailable`], and nothing was done.
    pub(super) fn remove_half_made(
        &self,
        site: &Site,
        name: &str,
        id: &str,
        header: Option<&Header>,
    ) -> Result<()> {
        let handle = site.handle(name);
        let mark = seal(&Torn { cluster: self.config.owner.clone(), since: Timestamp::now() })?;
        let marked = match header {
            Some(header) if header.meta.contains_key(TORN) => true,
            Some(header) => {
                let copied = header.meta.get(VOLUME).map_or("", String::as_str);
                site.update_if(id, &[(TORN, ""), (VOLUME, copied)], &[(TORN, &mark)], &[])?
            }
            None => site.make_tombstone(id, &mark)?,
        };
        if !marked {
            return Err(Error::Unavailable(format!(
                "image {} was half made, and was completed or removed at this moment; repeat the call",
                handle.spec()
            )));
        }
        let failed = |e| site.fail(&format!("removing half-made image {}", handle.spec()), e);
        if site.is_plain(id)? {
            for name in site.names_of_half_made(name, id)? {
                site.trash_plain(&name, id).map_err(failed)?;
            }
            self.tasks.purge(site, id, header.map_or(0, |header| header.size));
        } else if site.image_id(name)?.as_deref() == Some(id) {
            match site.pool.remove(name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        tracing::info!(image = %handle.spec(), id, "removed what an interrupted creation left");
        Ok(())
    }
}

impl Site {
    /// Gives an image that has none a header, with the mark, so that whoever makes the image at this moment fails; `false`: it
    /// has one by now.
    fn make_tombstone(&self, id: &str, mark: &[u8]) -> Result<bool> {
        let prefix = format!("rbd_data.{id}");
        // Size, object size, features, the prefix of the data objects.
        let header = Encoder::default().number(0).byte(ORDER).number(0).blob(prefix.as_bytes()).done();
        let marked = Encoder::default().map(&[(TORN, mark)]).done();
        let calls = [("rbd", "create", header), ("rbd", "metadata_set", marked)];
        match self.pool.write_calls(&format!("rbd_header.{id}"), &calls) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(self.fail(&format!("marking the torn image id {id}"), e)),
        }
    }
}

impl Header {
    /// Whether it is what an interrupted creation of this driver's has left, marked for its removal.
    pub(super) fn is_torn_of(&self, handle: &Handle, owner: &str) -> Result<bool> {
        let Some(text) = self.meta.get(TORN) else { return Ok(false) };
        Ok(read_note::<Torn>(handle, TORN, text)?.cluster == owner)
    }
}

/// What an image without a record holds.
pub(super) enum Holds {
    /// No data of its own, no snapshot, and nobody has it open.
    Nothing,
    /// The client of this address has it open.
    Open(String),
    /// Something, or nobody could look.
    Something(String),
}

/// Looks whether an image without a record holds anything.
pub(super) fn holds_nothing(site: &Site, id: &str) -> Holds {
    let look = || -> Result<Holds, Errno> {
        let image = super::ffi::Image::look(&site.pool, id, None)?;
        if let Some(watcher) = image.watchers()?.first() {
            return Ok(Holds::Open(watcher.address.clone()));
        }
        if let Some(snapshot) = image.snapshots()?.first() {
            return Ok(Holds::Something(format!("it has snapshot {}", snapshot.name)));
        }
        let mut data = None;
        image.diff(None, (0, image.size()?), false, |offset, _, exists| {
            data = exists.then_some(offset).or(data);
            data.is_none()
        })?;
        Ok(data.map_or(Holds::Nothing, |offset| Holds::Something(format!("it holds data at byte {offset}"))))
    };
    match look() {
        Ok(holds) => holds,
        Err(Errno::NOENT) => Holds::Nothing,
        Err(errno) => Holds::Something(format!("it could not be looked at: {}", std::io::Error::from(errno))),
    }
}
