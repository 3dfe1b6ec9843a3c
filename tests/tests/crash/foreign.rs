//! What belongs to others and stands beside the driver's volumes: it is as it was after every round.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e::ceph::Ceph;

/// Its name: a directory's, or an image's.
pub const NAME: &str = "theirs";
const TEXT: &str = "not a volume of ours";

/// A directory as a local volume's would be.
pub fn plant(root: &Path) -> Result<()> {
    fs::create_dir_all(root.join(NAME))?;
    Ok(fs::write(root.join(NAME).join("disk.img"), TEXT)?)
}

/// Nobody has touched it.
pub fn check(root: &Path) -> Result<()> {
    let file = root.join(NAME).join("disk.img");
    let text = fs::read_to_string(&file).with_context(|| format!("{} of somebody else", file.display()))?;
    ensure!(text == TEXT, "{} of somebody else has changed: {text}", file.display());
    Ok(())
}

/// An image without a record.
pub fn plant_image(ceph: &Ceph, place: &str) -> Result<()> {
    ceph.run("rbd", &["create", "--size", "8", &format!("{place}/{NAME}")]).map(drop)
}
