//! A pool, or a namespace of one: its images and its trash.

use std::ptr::null_mut;
use std::sync::Arc;

use super::api::{Handle, ImageSpec, TrashInfo};
use super::connection::Connection;
use super::{Errno, check, copy, filled, split, text};

/// An I/O context: closed when it is dropped.
pub(crate) struct Pool {
    pub(super) connection: Arc<Connection>,
    pub(super) raw: Handle,
}

// SAFETY: its settings are made before it is shared; all else may be called from several threads (librados.h).
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: made by rados_ioctx_create, destroyed once; images keep the pool.
        unsafe { (self.connection.api.rados.rados_ioctx_destroy)(self.raw) }
    }
}

/// How an image is made. What is `None` is as the cluster's default has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageOptions {
    /// Feature bits (rbd/features.h).
    pub(crate) features: Option<u64>,
    /// Object size as a power of two.
    pub(crate) order: Option<u64>,
    /// Bytes.
    pub(crate) stripe_unit: Option<u64>,
    /// Objects.
    pub(crate) stripe_count: Option<u64>,
    /// The pool that the data is in, where it is not the image's.
    pub(crate) data_pool: Option<String>,
}

/// An image in the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TrashEntry {
    pub(crate) id: String,
    pub(crate) name: String,
    /// Moved there by a user's command, not by mirroring or migration.
    pub(crate) by_user: bool,
    /// Seconds of the Unix epoch.
    pub(crate) deleted: i64,
}

/// The options as librbd has them.
struct RawOptions {
    connection: Arc<Connection>,
    raw: Handle,
}

impl Drop for RawOptions {
    fn drop(&mut self) {
        // SAFETY: made by rbd_image_options_create, destroyed once.
        unsafe { (self.connection.api.rbd.rbd_image_options_destroy)(self.raw) }
    }
}

impl RawOptions {
    fn new(connection: &Arc<Connection>, options: &ImageOptions, clone: bool) -> Result<Self, Errno> {
        let mut raw = null_mut();
        // SAFETY: the call writes the handle.
        unsafe { (connection.api.rbd.rbd_image_options_create)(&raw mut raw) };
        let it = Self { connection: connection.clone(), raw };
        // The numbers are RBD_IMAGE_OPTION_*; the clone format is no option of a new image.
        let numbers = [
            (1, options.features),
            (2, options.order),
            (3, options.stripe_unit),
            (4, options.stripe_count),
            (12, clone.then_some(2)),
        ];
        for (option, value) in numbers {
            if let Some(value) = value {
                // SAFETY: the handle is alive.
                let set = unsafe { (connection.api.rbd.rbd_image_options_set_uint64)(raw, option, value) };
                check(set)?;
            }
        }
        if let Some(pool) = &options.data_pool {
            let pool = text(pool)?;
            // SAFETY: the handle and the string are alive.
            check(unsafe { (connection.api.rbd.rbd_image_options_set_string)(raw, 10, pool.as_ptr()) })?;
        }
        Ok(it)
    }
}

impl Pool {
    /// Opens a pool; an empty namespace is the default one. No such pool: ENOENT. A namespace is not looked for.
    pub(crate) fn open(
        connection: &Arc<Connection>,
        name: &str,
        namespace: &str,
    ) -> Result<Arc<Self>, Errno> {
        let (name, namespace) = (text(name)?, text(namespace)?);
        let mut raw = null_mut();
        // SAFETY: the string lives through the call, which writes the handle.
        let code =
            unsafe { (connection.api.rados.rados_ioctx_create)(connection.raw, name.as_ptr(), &raw mut raw) };
        check(code)?;
        // SAFETY: the handle is not shared yet.
        unsafe { (connection.api.rados.rados_ioctx_set_namespace)(raw, namespace.as_ptr()) };
        Ok(Arc::new(Self { connection: connection.clone(), raw }))
    }

    /// The pool's number, which its cluster gives no other pool.
    pub(crate) fn id(&self) -> i64 {
        // SAFETY: the pool is alive; the call writes nothing.
        unsafe { (self.connection.api.rados.rados_ioctx_get_id)(self.raw) }
    }

    /// Makes an image of `size` bytes. Taken: EEXIST.
    pub(crate) fn create(&self, name: &str, size: u64, options: &ImageOptions) -> Result<(), Errno> {
        let name = text(name)?;
        let options = RawOptions::new(&self.connection, options, false)?;
        // SAFETY: pool, options and string are alive.
        let code =
            unsafe { (self.connection.api.rbd.rbd_create4)(self.raw, name.as_ptr(), size, options.raw) };
        check(code).map(drop)
    }

    /// Makes an image (in `into`) from a snapshot of an image here: clone format 2.
    pub(crate) fn clone_to(
        &self,
        parent: (&str, &str),
        into: &Self,
        name: &str,
        options: &ImageOptions,
    ) -> Result<(), Errno> {
        let (image, snapshot, name) = (text(parent.0)?, text(parent.1)?, text(name)?);
        let options = RawOptions::new(&self.connection, options, true)?;
        // SAFETY: both pools, the options and the strings are alive.
        let code = unsafe {
            (self.connection.api.rbd.rbd_clone3)(
                self.raw,
                image.as_ptr(),
                snapshot.as_ptr(),
                into.raw,
                name.as_ptr(),
                options.raw,
            )
        };
        check(code).map(drop)
    }

    /// Removes an image at once. Watched: EBUSY; with snapshots: ENOTEMPTY.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Errno> {
        let name = text(name)?;
        // SAFETY: pool and string are alive.
        check(unsafe { (self.connection.api.rbd.rbd_remove)(self.raw, name.as_ptr()) }).map(drop)
    }

    /// Renames an image.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        let (from, to) = (text(from)?, text(to)?);
        // SAFETY: pool and strings are alive.
        check(unsafe { (self.connection.api.rbd.rbd_rename)(self.raw, from.as_ptr(), to.as_ptr()) }).map(drop)
    }

    /// Moves an image to the trash, from where it may be removed at once. Watched: EBUSY.
    pub(crate) fn trash(&self, name: &str) -> Result<(), Errno> {
        let name = text(name)?;
        // SAFETY: pool and string are alive.
        check(unsafe { (self.connection.api.rbd.rbd_trash_move)(self.raw, name.as_ptr(), 0) }).map(drop)
    }

    /// Removes an image from the trash for good.
    pub(crate) fn trash_remove(&self, id: &str) -> Result<(), Errno> {
        let id = text(id)?;
        // SAFETY: pool and string are alive.
        check(unsafe { (self.connection.api.rbd.rbd_trash_remove)(self.raw, id.as_ptr(), true) }).map(drop)
    }

    /// What is in the trash.
    pub(crate) fn trash_list(&self) -> Result<Vec<TrashEntry>, Errno> {
        let rbd = &self.connection.api.rbd;
        let empty = TrashInfo { id: null_mut(), name: null_mut(), source: 0, deleted: 0, deferred_until: 0 };
        // SAFETY: the array has as many places as is said.
        let mut raw = filled(empty, |items, count| unsafe { (rbd.rbd_trash_list)(self.raw, items, count) })?;
        let entries = raw
            .iter()
            .map(|entry| TrashEntry {
                // SAFETY: strings that librbd made for the entry.
                id: unsafe { copy(entry.id) },
                // SAFETY: as above.
                name: unsafe { copy(entry.name) },
                by_user: matches!(entry.source, 0 | 4),
                deleted: entry.deleted,
            })
            .collect();
        // SAFETY: filled by librbd, freed once.
        unsafe { (rbd.rbd_trash_list_cleanup)(raw.as_mut_ptr(), raw.len()) };
        Ok(entries)
    }

    /// Every image: id and name.
    pub(crate) fn images(&self) -> Result<Vec<(String, String)>, Errno> {
        let rbd = &self.connection.api.rbd;
        let empty = ImageSpec { id: null_mut(), name: null_mut() };
        // SAFETY: the array has as many places as is said.
        let mut raw = filled(empty, |items, count| unsafe { (rbd.rbd_list2)(self.raw, items, count) })?;
        // SAFETY: strings that librbd made for each entry.
        let names = raw.iter().map(|spec| unsafe { (copy(spec.id), copy(spec.name)) }).collect();
        // SAFETY: filled by librbd, freed once.
        unsafe { (rbd.rbd_image_spec_list_cleanup)(raw.as_mut_ptr(), raw.len()) };
        Ok(names)
    }

    /// The pool's namespaces, without the default one.
    pub(crate) fn namespaces(&self) -> Result<Vec<String>, Errno> {
        let rbd = &self.connection.api.rbd;
        // SAFETY: the buffer has as many bytes as is said.
        let bytes =
            filled(0_u8, |items, count| unsafe { (rbd.rbd_namespace_list)(self.raw, items.cast(), count) })?;
        Ok(split(&bytes))
    }
}
