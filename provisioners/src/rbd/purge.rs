//! Removing an image from the trash for good.
//!
//! It is done by a client of its own: librbd goes over every object that an image could have, stored or not, on the one
//! thread that all calls of a client share; for 500 TiB that takes minutes. Of an image that could have many, what is
//! stored is read from the object map and removed here, and the image made empty, so that nothing is left to go over.

use super::delete::marked_by;
use super::ffi::{Errno, Image};
use super::handle::Place;
use super::locks::in_parallel;
use super::params::FAST_DIFF;
use super::site::{Header, Site};
use super::wire::{Decoder, Encoder, HEAD};
use crate::Result;

/// librbd goes over so many objects in a few seconds.
const MANY: u64 = 50_000;

/// Whether the image is gone; `false`: clones of it live. Only one that we have marked as deleted is touched.
pub(super) fn purge_one(site: &Site, id: &str, owner: &str) -> Result<bool> {
    let site = &site.session.behind()?.site(&site.place)?;
    if let Some(header) = site.header(id)? {
        if !marked_by(&site.handle(id), &header, owner)? {
            return Ok(false);
        }
        if !header.has_snapshots {
            empty(site, &header)?;
        }
    }
    match site.pool.trash_remove(id) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::BUSY | Errno::CHILD) => Ok(false),
        Err(errno) => Err(site.fail(&format!("removing image id {id} from the trash"), errno)),
    }
}

/// Removes what is stored of an image that could have many objects, and makes it empty. Each step can be repeated. An
/// image of another kind is left to librbd.
fn empty(site: &Site, header: &Header) -> Result<()> {
    let id = &header.image;
    let Some(image) = site.look(id)? else { return Ok(()) };
    let failed = |errno| site.fail(&format!("removing the objects of image id {id}"), errno);
    let name = format!("rbd_header.{id}");
    let size = site.pool.exec(&name, &("rbd", "get_size", Encoder::default().number(HEAD).done()));
    // The answer begins with the object size as a power of two.
    let object = 1_u64 << Decoder(&size.map_err(failed)?).byte()?.min(63);
    let plain = image.stripe_count().map_err(failed)? == 1 && image.stripe_unit().map_err(failed)? == object;
    let told = image.features().map_err(failed)? & FAST_DIFF != 0;
    if !plain || !told || header.size / object < MANY || !image.watchers().map_err(failed)?.is_empty() {
        return Ok(());
    }
    let stored = stored(&image, header.size, object).map_err(failed)?;
    let pool = image.data_pool().map_err(failed)?;
    let data = site.session.site(&Place { pool, ..site.place.clone() })?;
    let prefix = site.pool.exec(&name, &("rbd", "get_object_prefix", Vec::new()));
    let prefix = Decoder(&prefix.map_err(failed)?).text()?;
    drop(image);
    let remove = |number: &u64| match data.pool.remove_object(&format!("{prefix}.{number:016x}")) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed(errno)),
    };
    in_parallel(&stored, remove, &|_, _| {})?;
    let size = ("rbd", "set_size", Encoder::default().number(0).done());
    site.pool.write_calls(&name, &[size]).map_err(failed)?;
    tracing::debug!(image = %id, objects = stored.len(), "emptied by its object map");
    Ok(())
}

/// The numbers of the objects that are stored.
fn stored(image: &Image, size: u64, object: u64) -> Result<Vec<u64>, Errno> {
    let mut numbers = Vec::new();
    image.diff(None, (0, size), false, |offset, length, exists| {
        if exists {
            numbers.extend(offset / object..(offset + length).div_ceil(object));
        }
        true
    })?;
    Ok(numbers)
}
