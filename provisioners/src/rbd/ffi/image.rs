//! An open image.

use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use super::api::{Handle, Rbd};
use super::pool::Pool;
use super::{Errno, check, text};

/// An image that is open: closed when it is dropped.
pub(crate) struct Image {
    pub(super) pool: Arc<Pool>,
    pub(super) raw: Handle,
}

// SAFETY: an rbd_image_t may be used from any thread, several at once (librbd serialises inside).
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: opened by librbd, closed once.
        let _ = unsafe { (self.rbd().rbd_close)(self.raw) };
    }
}

/// Tells a Rust closure how far something is; what it answers ends the work when negative.
extern "C" fn tell(done: u64, total: u64, closure: *mut c_void) -> c_int {
    // SAFETY: the pointer is the one that `with_progress` gave, which waits for the end of the call.
    let closure = unsafe { &mut *closure.cast::<&mut dyn FnMut(u64, u64)>() };
    closure(done, total);
    0
}

extern "C" fn silent(_: u64, _: u64, _: *mut c_void) -> c_int {
    0
}

extern "C" fn extent(offset: u64, length: usize, exists: c_int, closure: *mut c_void) -> c_int {
    // SAFETY: the pointer is the one that `diff` gave, which waits for the end of the call.
    let closure = unsafe { &mut *closure.cast::<&mut dyn FnMut(u64, u64, bool) -> bool>() };
    if closure(offset, length as u64, exists != 0) { 0 } else { -Errno::CANCELED.raw_os_error() }
}

impl Image {
    pub(super) fn rbd(&self) -> &'static Rbd {
        &self.pool.connection.api.rbd
    }

    /// Opens an image by its id for changes. This makes us one of its watchers until it is closed.
    pub(crate) fn open(pool: &Arc<Pool>, id: &str) -> Result<Self, Errno> {
        Self::opened(pool, id, None, pool.connection.api.rbd.rbd_open_by_id)
    }

    /// Opens an image, or a snapshot of it, for reading: nobody sees us. Also one in the trash.
    pub(crate) fn look(pool: &Arc<Pool>, id: &str, snapshot: Option<&str>) -> Result<Self, Errno> {
        Self::opened(pool, id, snapshot, pool.connection.api.rbd.rbd_open_by_id_read_only)
    }

    fn opened(pool: &Arc<Pool>, id: &str, snapshot: Option<&str>, call: OpenCall) -> Result<Self, Errno> {
        let id = text(id)?;
        let snapshot = snapshot.map(text).transpose()?;
        let mut raw = null_mut();
        let snapshot = snapshot.as_ref().map_or(null(), |s| s.as_ptr());
        // SAFETY: pool and strings live through the call, which writes the handle.
        check(unsafe { call(pool.raw, id.as_ptr(), &raw mut raw, snapshot) })?;
        Ok(Self { pool: pool.clone(), raw })
    }

    /// Grows the image to `size` bytes; never shrinks (EINVAL).
    pub(crate) fn grow(&self, size: u64) -> Result<(), Errno> {
        // SAFETY: the image is open; the callback takes no data.
        check(unsafe { (self.rbd().rbd_resize2)(self.raw, size, false, silent, null_mut()) }).map(drop)
    }

    /// Takes a snapshot. There: EEXIST.
    pub(crate) fn snapshot(&self, name: &str) -> Result<(), Errno> {
        let name = text(name)?;
        // SAFETY: image and string are alive.
        check(unsafe { (self.rbd().rbd_snap_create)(self.raw, name.as_ptr()) }).map(drop)
    }

    /// Removes a snapshot; one that has clones goes on in the trash namespace until they are gone.
    pub(crate) fn remove_snapshot(&self, name: &str) -> Result<(), Errno> {
        let name = text(name)?;
        // SAFETY: image and string are alive.
        check(unsafe { (self.rbd().rbd_snap_remove)(self.raw, name.as_ptr()) }).map(drop)
    }

    /// Copies what the image has from its parent, so that it has none; tells how far it is (objects done, in all).
    pub(crate) fn flatten(&self, mut progress: impl FnMut(u64, u64)) -> Result<(), Errno> {
        let mut closure: &mut dyn FnMut(u64, u64) = &mut progress;
        // SAFETY: the closure lives until the call returns, and librbd calls back only meanwhile, from one thread at a
        // time (it holds a lock over its progress callbacks).
        check(unsafe { (self.rbd().rbd_flatten_with_progress)(self.raw, tell, (&raw mut closure).cast()) })
            .map(drop)
    }

    /// Takes the managed exclusive lock and keeps it: other clients' writes wait.
    pub(crate) fn lock(&self) -> Result<(), Errno> {
        // SAFETY: the image is open.
        check(unsafe { (self.rbd().rbd_lock_acquire)(self.raw, 0) }).map(drop)
    }

    /// Gives the lock back.
    pub(crate) fn unlock(&self) -> Result<(), Errno> {
        // SAFETY: the image is open.
        check(unsafe { (self.rbd().rbd_lock_release)(self.raw) }).map(drop)
    }

    /// Whether we hold the managed lock.
    pub(crate) fn is_locked_by_us(&self) -> Result<bool, Errno> {
        let mut owner = 0;
        // SAFETY: the image is open, the call writes the answer.
        check(unsafe { (self.rbd().rbd_is_exclusive_lock_owner)(self.raw, &raw mut owner) })?;
        Ok(owner != 0)
    }

    /// Breaks a lock by its owner (`client.4711`) and cookie. No such lock: ENOENT.
    pub(crate) fn break_lock(&self, client: &str, cookie: &str) -> Result<(), Errno> {
        let (client, cookie) = (text(client)?, text(cookie)?);
        // SAFETY: image and strings are alive.
        check(unsafe { (self.rbd().rbd_break_lock)(self.raw, client.as_ptr(), cookie.as_ptr()) }).map(drop)
    }

    /// Calls `each` with every extent (offset, bytes, whether there is data) that differs between the snapshot `from`
    /// (none: an empty image) and what is open, in the range (offset, bytes); whole objects, as the object map has them. With
    /// `with_parent` what is only in its parent counts, too. `each` ends it by `false`.
    pub(crate) fn diff(
        &self,
        from: Option<&str>,
        range: (u64, u64),
        with_parent: bool,
        mut each: impl FnMut(u64, u64, bool) -> bool,
    ) -> Result<(), Errno> {
        let from = from.map(text).transpose()?;
        let mut closure: &mut dyn FnMut(u64, u64, bool) -> bool = &mut each;
        // SAFETY: image and string are alive; the closure lives until the call returns.
        let code = unsafe {
            (self.rbd().rbd_diff_iterate2)(
                self.raw,
                from.as_ref().map_or(null(), |s| s.as_ptr()),
                range.0,
                range.1,
                with_parent.into(),
                1,
                extent,
                (&raw mut closure).cast(),
            )
        };
        match check(code) {
            Err(Errno::CANCELED) => Ok(()),
            other => other.map(drop),
        }
    }
}

type OpenCall = unsafe extern "C" fn(Handle, super::api::Text, *mut Handle, super::api::Text) -> c_int;
