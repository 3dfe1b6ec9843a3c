//! ControllerModifyVolume: owner and mode of the directory, and what becomes of it.

use super::client::{Set, Who};
use super::params::{DOCS, Mode, Mutable};
use super::share::Told;
use super::store::Store;
use crate::parameters::canonical;
use crate::{Error, Result, StringMap, VolumeId};

impl Store {
    /// Sets the mutable parameters.
    pub(super) fn modify(&self, id: &VolumeId, parameters: &StringMap) -> Result<()> {
        let wish = Mutable::parse(parameters)?;
        let parameters = &canonical(parameters, &DOCS);
        let mut found = self.volume(id)?;
        let set = Set {
            mode: wish.mode.and_then(Mode::bits),
            owner: wish.uid.map(Who::Id),
            group: wish.gid.map(Who::Id),
            ..Set::default()
        };
        if set.mode.is_some() || set.owner.is_some() || set.group.is_some() {
            let dir = found.dir()?.ok_or_else(|| {
                Error::Refused(format!("volume {id}: its directory {} is missing", found.record.dir))
            })?;
            let done = found.share.ask(|s| s.set(&dir, &set));
            done.told(&found.share, &format!("setting the attributes of {}", found.record.dir))?;
        }
        found.change(|record| {
            let before = record.modified.clone();
            record.modified.extend(parameters.clone());
            // One policy under one name: the newer word counts.
            for (word, other) in [("onDelete", "archiveOnDelete"), ("archiveOnDelete", "onDelete")] {
                if parameters.contains_key(word) && !parameters.contains_key(other) {
                    record.modified.remove(other);
                }
            }
            Ok(record.modified != before)
        })
    }
}
