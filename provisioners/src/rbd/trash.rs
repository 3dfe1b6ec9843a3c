//! Moving an image to the trash by the calls that librbd makes for it (librbd/trash), without opening the image and taking
//! its lock, which is most of the time of `rbd_trash_move`.
//!
//! Only for an image that nobody has open and that has nothing else to be undone: no snapshots, no journal, no group. All
//! others take librbd's way.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::ffi::Errno;
use super::site::Site;
use super::wire::{Decoder, Encoder, HEAD};
use crate::Result;

/// `RBD_FEATURE_JOURNALING`, `_MIGRATING`, `_NON_PRIMARY`: an image with one of these is more than its objects.
const ENTANGLED: u64 = 1 << 6 | 1 << 9 | 1 << 10;
/// `TRASH_IMAGE_SOURCE_USER`.
const BY_USER: u8 = 0;
/// So many groups are looked at for one's name.
const GROUPS_READ: u64 = 1000;
/// `TRASH_IMAGE_STATE_NORMAL`.
const NORMAL: u8 = 0;

impl Site {
    /// Whether an image is no more than its objects: neither journalled or mirrored, nor a member of a group.
    pub(super) fn is_plain(&self, id: &str) -> Result<bool> {
        let features = ("rbd", "get_features", Encoder::default().number(HEAD).byte(1).done());
        let group = ("rbd", "image_group_get", Vec::new());
        let header = format!("rbd_header.{id}");
        // A cluster that does not know a call, or an image without a header: librbd knows more.
        let Ok(answers) = self.pool.read_calls(&header, &[features, group]) else { return Ok(false) };
        let features = Decoder(&answers[0]).number()?;
        // A group is its version and length (six bytes), the number of its pool (eight), and its id, empty for none.
        let alone = answers[1].get(14..18).is_some_and(|length| length == [0; 4]);
        Ok(features & ENTANGLED == 0 && alone)
    }

    /// The group of `rbd group` that an image is a member of, as `<pool>/<group>`; its id, where its name is not known here.
    pub(super) fn group_of(&self, id: &str) -> Result<Option<String>> {
        let calls = [("rbd", "image_group_get", Vec::new())];
        let answers = match self.pool.read_calls(&format!("rbd_header.{id}"), &calls) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(|errno| self.fail("asking for an image's group", errno))?,
        };
        // Version and length, the pool's number, the id.
        let mut group = Decoder(answers[0].get(14..).unwrap_or_default());
        let id = group.text()?;
        if id.is_empty() {
            return Ok(None);
        }
        let list = Encoder::default().blob(b"").number(GROUPS_READ).done();
        let known = self.pool.exec("rbd_group_directory", &("rbd", "group_dir_list", list));
        let known = known.map_or_else(|_| Ok(BTreeMap::new()), |answer| Decoder(&answer).map())?;
        let name = known.into_iter().find_map(|(name, its)| (its == id).then_some(name));
        Ok(Some(format!("{}/{}", self.place.path(), name.unwrap_or(id))))
    }

    /// Moves a plain image that nobody has open to the trash. Each step can be repeated; after the first it is there. Only
    /// this image is touched: the name may be another one's by now.
    pub(super) fn trash_plain(&self, name: &str, id: &str) -> Result<(), Errno> {
        let now = Timestamp::now();
        let entry = Encoder::default().byte(BY_USER).blob(name.as_bytes()).time(now).time(now).byte(NORMAL);
        let add = Encoder::default().blob(id.as_bytes()).versioned(2, 1, &entry).done();
        done_before(self.pool.write_calls("rbd_trash", &[("rbd", "trash_add", add)]), &[Errno::EXIST])?;
        let its = Encoder::default().blob(id.as_bytes()).done();
        let named = self.pool.remove_object_if(&format!("rbd_id.{name}"), &its);
        done_before(named, &[Errno::NOENT, Errno::CANCELED])?;
        let remove = Encoder::default().blob(name.as_bytes()).blob(id.as_bytes()).done();
        let removed = self.pool.write_calls("rbd_directory", &[("rbd", "dir_remove_image", remove)]);
        done_before(removed, &[Errno::NOENT, Errno::STALE])
    }

    /// Strikes an image that is gone off the list of the trash.
    pub(super) fn trash_forget(&self, id: &str) -> Result<(), Errno> {
        let remove = Encoder::default().blob(id.as_bytes()).done();
        done_before(self.pool.write_calls("rbd_trash", &[("rbd", "trash_remove", remove)]), &[Errno::NOENT])
    }
}

/// A step that an interrupted call, or another one, has done already is done.
fn done_before(step: Result<(), Errno>, signs: &[Errno]) -> Result<(), Errno> {
    match step {
        Err(errno) if signs.contains(&errno) => Ok(()),
        other => other,
    }
}
