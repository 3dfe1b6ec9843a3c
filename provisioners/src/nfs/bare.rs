//! The calls that a volume needs, and nothing else: the baseline of the benchmarks.

use super::client::{Fh, Outcome, Set, Special};
use super::config::NfsConfig;
use super::handle::ShareId;
use super::share::{Own, Share, Told, draft_name};
use crate::Result;

/// About the size of a record, in bytes.
const RECORD: [u8; 500] = [b'x'; 500];

/// A share whose volumes are made without a driver.
pub struct Bare {
    share: Share,
    own: Own,
}

impl Bare {
    /// Connects to the first share of a configuration.
    pub fn connect(config: &NfsConfig) -> Result<Self> {
        config.validate()?;
        let spec = config.shares[0].clone();
        let share = Share::new(ShareId::Named(spec.name.clone()), spec, config, None);
        let own = share.own().told(&share, "making directories")?;
        Ok(Self { share, own })
    }

    /// A directory with a record that comes into being with it.
    pub fn create(&self, name: &str) -> Result<()> {
        self.try_create(name.as_bytes()).told(&self.share, "creating")
    }

    fn try_create(&self, name: &[u8]) -> Outcome<()> {
        let (share, own, draft) = (&self.share, &self.own, draft_name());
        let file = format!("{draft}.json");
        let set = Set { mode: Some(0o777), ..Set::default() };
        share.look(&own.volumes, name)?;
        share.ask(|s| s.make(&own.tmp, draft.as_bytes(), &Special::Directory, &set))?;
        let record: Fh = share.put(&own.tmp, file.as_bytes(), &RECORD)?.fh;
        share.link(&record, &own.intents, name)?;
        share.look(&own.volumes, name)?;
        share.remove(&own.tmp, file.as_bytes())?;
        share.look(&own.root, name)?;
        share.rename(&own.tmp, draft.as_bytes(), &own.root, name)?;
        share.rename(&own.intents, name, &own.volumes, name)
    }

    /// Takes it away again.
    pub fn delete(&self, name: &str) -> Result<()> {
        self.try_delete(name.as_bytes()).told(&self.share, "deleting")
    }

    fn try_delete(&self, name: &[u8]) -> Outcome<()> {
        let (share, own, trash) = (&self.share, &self.own, draft_name());
        share.get(&own.volumes, name)?;
        share.look(&own.root, name)?;
        share.rename(&own.root, name, &own.trash, trash.as_bytes())?;
        share.remove(&own.volumes, name)?;
        let dir = share.ask(|s| s.lookup(&own.trash, trash.as_bytes()))?;
        share.entries(&dir.fh)?;
        share.ask(|s| s.remove_dir(&own.trash, trash.as_bytes()))
    }

    /// How many calls were sent.
    pub fn calls(&self) -> u64 {
        self.share.calls()
    }
}
