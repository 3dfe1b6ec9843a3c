//! A place with its connection: images' headers read and written in one round trip, and maps of records.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::errors::failed;
use super::ffi::{Errno, Image, Pool};
use super::handle::{Handle, Place};
use super::record::{Found, Intent, Record, TURN, decode, encode};
use super::session::Session;
use super::wire::{Decoder, Encoder, HEAD};
use crate::{Error, Result};

/// The map of creations that have begun.
pub(super) const INTENTS: &str = "volumectl.intents";
/// Under which key of it an image's creation is noted.
pub(super) fn creation(name: &str) -> String {
    format!("create/{name}")
}

/// The map of snapshots.
pub(super) const SNAPSHOTS: &str = "volumectl.snapshots";
/// The map of groups.
pub(super) const GROUPS: &str = "volumectl.groups";
/// So many entries are read at once.
const BATCH: u64 = 1000;

/// Where images are, connected.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) place: Place,
    pub(super) pool: Arc<Pool>,
    pub(super) session: Arc<Session>,
}

/// What an image's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// The image's id.
    pub(super) image: String,
    /// Bytes.
    pub(super) size: u64,
    /// Whether it has snapshots of any kind.
    pub(super) has_snapshots: bool,
    /// The image's metadata.
    pub(super) meta: BTreeMap<String, String>,
}

impl Site {
    /// The error for a call that failed here.
    pub(super) fn fail(&self, doing: &str, errno: Errno) -> Error {
        self.session.note(errno);
        failed(doing, errno, &self.session.settings.user, &self.place.pool)
    }

    /// The handle of an image here.
    pub(super) fn handle(&self, name: &str) -> Handle {
        Handle { place: self.place.clone(), name: name.to_owned() }
    }

    fn spec(&self, name: &str) -> String {
        self.handle(name).spec()
    }

    /// The id of the image of a name. `None`: no such image. As librbd does, the directory is asked where the name has no
    /// object of its own: a creation or removal that was interrupted leaves the one without the other.
    pub(super) fn image_id(&self, name: &str) -> Result<Option<String>> {
        let failed = |errno| self.fail(&format!("looking for image {}", self.spec(name)), errno);
        match self.pool.exec(&format!("rbd_id.{name}"), &("rbd", "get_id", Vec::new())) {
            Ok(answer) => return Decoder(&answer).text().map(Some),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let input = Encoder::default().blob(name.as_bytes()).done();
        match self.pool.exec("rbd_directory", &("rbd", "dir_get_id", input)) {
            Ok(answer) => Decoder(&answer).text().map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// The name of the image of an id. `None`: none such, or it is in the trash.
    pub(super) fn image_name(&self, id: &str) -> Result<Option<String>> {
        let input = Encoder::default().blob(id.as_bytes()).done();
        match self.pool.exec("rbd_directory", &("rbd", "dir_get_name", input)) {
            Ok(answer) => Decoder(&answer).text().map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.fail(&format!("looking for image id {id}"), errno)),
        }
    }

    /// An image's header. `None`: it has none.
    pub(super) fn header(&self, id: &str) -> Result<Option<Header>> {
        let list = |after: &str| {
            let input = Encoder::default().blob(after.as_bytes()).number(BATCH).done();
            ("rbd", "metadata_list", input)
        };
        let size = ("rbd", "get_size", Encoder::default().number(HEAD).done());
        let object = format!("rbd_header.{id}");
        let calls = [size, ("rbd", "get_snapcontext", Vec::new()), list("")];
        let answers = match self.pool.read_calls(&object, &calls) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(|e| self.fail(&format!("reading the header of image id {id}"), e))?,
        };
        let mut size = Decoder(&answers[0]);
        size.byte()?;
        let size = size.number()?;
        // A snapshot context: the newest id, and the list, whose length comes first.
        let has_snapshots = answers[1].get(8..12).is_some_and(|count| count != [0; 4]);
        let mut meta = Decoder(&answers[2]).map()?;
        let mut batch = meta.len();
        while batch as u64 == BATCH {
            let after = meta.keys().next_back().cloned().unwrap_or_default();
            let more = self.pool.read_calls(&object, &[list(&after)]);
            let more = more.map_err(|e| self.fail(&format!("reading the metadata of image id {id}"), e))?;
            let more = Decoder(&more[0]).map()?;
            batch = more.len();
            meta.extend(more);
        }
        Ok(Some(Header { image: id.to_owned(), size, has_snapshots, meta }))
    }

    /// Sets and removes keys of an image's metadata, all or none. No such image: [`Error::NotFound`].
    pub(super) fn update(&self, id: &str, set: &[(&str, &[u8])], remove: &[&str]) -> Result<()> {
        self.update_if(id, &[], set, remove).map(drop)
    }

    /// The same in one step with the question whether keys have these values (empty: no such key); `false`: they have not,
    /// and nothing was written.
    pub(super) fn update_if(
        &self,
        id: &str,
        has: &[(&str, &str)],
        set: &[(&str, &[u8])],
        remove: &[&str],
    ) -> Result<bool> {
        let mut calls = Vec::new();
        for key in remove {
            calls.push(("rbd", "metadata_remove", Encoder::default().blob(key.as_bytes()).done()));
        }
        if !set.is_empty() {
            calls.push(("rbd", "metadata_set", Encoder::default().map(set).done()));
        }
        if calls.is_empty() {
            return Ok(true);
        }
        // The object class keeps a key of the metadata under this name (cls_rbd, RBD_METADATA_KEY_PREFIX).
        let has: Vec<_> =
            has.iter().map(|(key, value)| (format!("metadata_{key}"), value.as_bytes())).collect();
        match self.pool.write_calls_if(&format!("rbd_header.{id}"), &has, &calls) {
            Ok(()) => Ok(true),
            Err(Errno::CANCELED) => Ok(false),
            Err(e) => Err(self.fail(&format!("writing the metadata of image id {id}"), e)),
        }
    }

    /// Changes who may have a volume, if nobody else has since it was read; `false`: somebody has, and nothing was written.
    pub(super) fn update_in_turn(
        &self,
        found: &Found,
        set: &[(&str, &[u8])],
        remove: &[&str],
    ) -> Result<bool> {
        let turn = nonce();
        let set = [set, &[(TURN, turn.as_bytes())]].concat();
        self.update_if(&found.header.image, &[(TURN, found.turn())], &set, remove)
    }

    /// Opens an image for changes; we are one of its watchers until it is closed. A lock for which librbd would fence a
    /// client that lives: [`Error::Unavailable`].
    pub(super) fn open(&self, id: &str) -> Result<Image> {
        let image = self.open_fenced(id)?;
        self.refuse_to_fence(id, &image)?;
        Ok(image)
    }

    /// Opens an image whose lock's owner was fenced just now.
    pub(super) fn open_fenced(&self, id: &str) -> Result<Image> {
        Image::open(&self.pool, id).map_err(|e| self.fail(&format!("opening image id {id}"), e))
    }

    /// Opens an image for looking at it. `None`: no such image.
    pub(super) fn look(&self, id: &str) -> Result<Option<Image>> {
        match Image::look(&self.pool, id, None) {
            Ok(image) => Ok(Some(image)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.fail(&format!("opening image id {id}"), e)),
        }
    }

    /// A record in a map. `None`: none under that key.
    pub(super) fn entry<T: Record>(&self, map: &str, key: &str) -> Result<Option<T>> {
        // A listing of one: keys that begin with this one, the shortest of which is the key itself.
        let found = self.pool.omap_list(map, "", key, 1).map_err(|e| self.fail(&reading(map), e))?;
        let own = found.into_iter().find(|(name, _)| name == key);
        own.map(|(_, value)| decode(&self.entry_name(map, key), &value)).transpose()
    }

    /// Records of a map after a key, at most `max`, whose keys begin with `prefix`.
    pub(super) fn entries<T: Record>(
        &self,
        map: &str,
        after: &str,
        prefix: &str,
        max: u64,
    ) -> Result<Vec<(String, Result<T>)>> {
        let found = self.pool.omap_list(map, after, prefix, max).map_err(|e| self.fail(&reading(map), e))?;
        let read = |(key, value): (String, Vec<u8>)| {
            let record = decode(&self.entry_name(map, &key), &value);
            (key, record)
        };
        Ok(found.into_iter().map(read).collect())
    }

    fn entry_name(&self, map: &str, key: &str) -> String {
        format!("the entry {key} of {map} in {}", self.place.path())
    }

    /// Writes a record into a map.
    pub(super) fn note<T: Record>(&self, map: &str, key: &str, record: &T) -> Result<()> {
        let value = encode(record)?;
        self.pool.omap_set(map, &[(key, &value)]).map_err(|e| self.fail(&format!("writing {map}"), e))
    }

    /// Removes records of a map.
    pub(super) fn forget(&self, map: &str, keys: &[&str]) -> Result<()> {
        self.pool.omap_remove(map, keys).map_err(|e| self.fail(&format!("writing {map}"), e))
    }

    /// The intent of an image's creation, if one is noted.
    pub(super) fn intent(&self, name: &str) -> Result<Option<Intent>> {
        self.entry(INTENTS, &creation(name))
    }
}

/// A text that no other call, process or machine makes.
pub(super) fn nonce() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn reading(map: &str) -> String {
    format!("reading {map}")
}
