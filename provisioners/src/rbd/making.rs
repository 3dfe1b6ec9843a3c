//! The names of images that are being made.
//!
//! librbd makes an image in several steps, and when one fails it removes the name, whatever image that has by then. So an
//! image is made under a name of its own, which no other call, process or machine uses, and gets the volume's name when
//! librbd is done with it, in one step with the question whether there is an image of that name. What an interrupted
//! creation leaves is a draft, and never has a volume's name for longer than from there to its record.

use std::time::Duration;

use jiff::Timestamp;

use super::ffi::Errno;
use super::record::{Found, OURS};
use super::site::{Header, Site, nonce};
use super::store::Store;
use super::sweep::age;
use super::torn::{Holds, holds_nothing};
use super::wire::Encoder;
use crate::{Error, Result};

/// What the name of a draft begins with; then come the time, a nonce, and the volume's name.
pub(super) const MAKING: &str = "volumectl.making.";
/// A draft that is older and that nobody has open is no longer worked on: each call to the cluster is given up sooner.
const FORGOTTEN: Duration = Duration::from_secs(90);
/// How often the directory is asked again whose entry another deletion is about to remove, and how long in between.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// An image that is being made.
pub(super) struct Draft {
    /// Its name until it has the volume's.
    pub(super) name: String,
    /// The volume's name in the pool.
    pub(super) of: String,
    /// The image's id.
    pub(super) id: String,
}

/// The name of a new draft of a volume.
pub(super) fn draft_name(of: &str) -> String {
    format!("{MAKING}{}.{}.{of}", Timestamp::now().as_second(), nonce())
}

/// When a draft was begun, and of which image; `None`: it is no draft's name.
fn read_name(name: &str) -> Option<(Timestamp, &str)> {
    let (since, rest) = name.strip_prefix(MAKING)?.split_once('.')?;
    let (_, of) = rest.split_once('.')?;
    Some((Timestamp::from_second(since.parse().ok()?).ok()?, of))
}

impl Site {
    /// Gives a draft the volume's name. `false`: there is an image of that name.
    pub(super) fn publish_draft(&self, draft: &Draft) -> Result<bool> {
        let failed = |e| self.fail(&format!("naming image {}", self.handle(&draft.of).spec()), e);
        let id = Encoder::default().blob(draft.id.as_bytes()).done();
        match self.pool.create_object(&format!("rbd_id.{}", draft.of), &id) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(false),
            Err(errno) => return Err(failed(errno)),
        }
        let fields = [&draft.name, &draft.of, &draft.id];
        let rename = fields.iter().fold(Encoder::default(), |it, text| it.blob(text.as_bytes())).done();
        for left in (0..TRIES).rev() {
            match self.pool.write_calls("rbd_directory", &[("rbd", "dir_rename_image", rename.clone())]) {
                // A deletion takes the name first, and its entry in the directory then.
                Err(Errno::EXIST) if left > 0 => std::thread::sleep(PAUSE),
                other => return other.map(|()| true).map_err(failed),
            }
        }
        Err(failed(Errno::EXIST))
    }

    /// The draft's own name, which is not needed any more. What cannot be removed is found by nobody.
    pub(super) fn forget_draft_name(&self, draft: &Draft) {
        let its = Encoder::default().blob(draft.id.as_bytes()).done();
        match self.pool.remove_object_if(&format!("rbd_id.{}", draft.name), &its) {
            Ok(()) | Err(Errno::NOENT | Errno::CANCELED) => {}
            Err(errno) => tracing::warn!(name = draft.name, %errno, "the name of a draft stays"),
        }
    }

    /// The names by which an image that is half made may be found: its own, those of its draft and of the volume.
    pub(super) fn names_of_half_made(&self, name: &str, id: &str) -> Result<Vec<String>> {
        let mut names = vec![name.to_owned()];
        names.extend(self.image_name(id)?);
        let of: Vec<_> =
            names.iter().filter_map(|name| read_name(name)).map(|(_, of)| of.to_owned()).collect();
        names.extend(of);
        names.sort_unstable_by_key(|name| name.starts_with(OURS));
        names.dedup();
        Ok(names)
    }
}

impl Store {
    /// Removes a draft that will not be completed. What fails is left to the sweep.
    pub(super) fn drop_draft(&self, site: &Site, draft: &Draft) {
        let dropped = site.header(&draft.id).and_then(|header| self.drop_half_made(site, draft, header));
        if let Err(error) = dropped {
            tracing::warn!(image = draft.name, %error, "what was not completed is left to the sweep");
        }
    }

    fn drop_half_made(&self, site: &Site, draft: &Draft, header: Option<Header>) -> Result<()> {
        match header {
            // It was completed after all, or was removed.
            Some(header) if Found::read(&site.handle(&draft.of), header.clone())?.is_some() => Ok(()),
            Some(header) => self.remove_half_made(site, &draft.name, &draft.id, Some(&header)),
            None => Ok(()),
        }
    }

    /// Removes a draft that nobody has come back for.
    pub(super) fn sweep_draft(&self, site: &Site, id: &str, name: &str) -> Result<()> {
        let Some((since, of)) = read_name(name) else { return Ok(()) };
        if age(since) < FORGOTTEN {
            return Ok(());
        }
        let header = site.header(id)?;
        if let Some(header) = &header {
            let found = Found::read(&site.handle(of), header.clone())?;
            if found.is_some() || !matches!(holds_nothing(site, id), Holds::Nothing) {
                return Err(Error::Unavailable(format!("draft {name} is in use or holds data")));
            }
        }
        self.remove_half_made(site, name, id, header.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drafts_name_tells_when_it_was_begun_and_of_what() {
        let name = draft_name("team.a-pvc.1");
        let (since, of) = read_name(&name).unwrap();
        assert_eq!(of, "team.a-pvc.1");
        assert!(age(since) < Duration::from_secs(5));
        assert_ne!(name, draft_name("team.a-pvc.1"));
        for other in ["pvc-1", "volumectl.deleted.1234", "volumectl.making.", "volumectl.making.x.y.z"] {
            assert!(read_name(other).is_none(), "{other}");
        }
    }
}
