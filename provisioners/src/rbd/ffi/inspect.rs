//! What an open image says of itself.

use std::ffi::c_int;
use std::ptr::null_mut;

use super::api::{LinkedImage, SnapInfo, SnapSpec, Timespec, WatcherInfo};
use super::image::Image;
use super::{Errno, check, copy, exactly, filled, first};

/// Another image that this one is linked with: a clone, or the parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Linked {
    pub(crate) pool: String,
    pub(crate) namespace: String,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) in_trash: bool,
}

/// From what an image was cloned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) image: Linked,
    /// The snapshot's name.
    pub(crate) snapshot: String,
}

/// A snapshot of the user's kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snap {
    pub(crate) id: u64,
    pub(crate) name: String,
    /// The image's size in bytes when it was taken.
    pub(crate) size: u64,
}

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Locker {
    /// Such as `client.4711`.
    pub(crate) client: String,
    /// Of a managed lock `auto <number>`.
    pub(crate) cookie: String,
    /// Such as `10.0.0.1:0/123`.
    pub(crate) address: String,
    /// Whether no other can hold it beside.
    pub(crate) exclusive: bool,
    /// The tag of a shared lock; `internal` for a managed one.
    pub(crate) tag: String,
}

impl Locker {
    /// Whether it is the lock of the feature exclusive-lock, which librbd takes and gives by itself.
    pub(crate) fn is_managed(&self) -> bool {
        self.tag == "internal" || self.cookie.starts_with("auto ")
    }
}

/// Who has the image open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watcher {
    pub(crate) address: String,
    pub(crate) client: i64,
    pub(crate) cookie: u64,
}

fn linked(raw: &LinkedImage) -> Linked {
    // SAFETY: strings that librbd made for the entry.
    unsafe {
        Linked {
            pool: copy(raw.pool_name),
            namespace: copy(raw.namespace),
            id: copy(raw.id),
            name: copy(raw.name),
            in_trash: raw.trash,
        }
    }
}

const NO_LINK: LinkedImage = LinkedImage {
    pool_id: 0,
    pool_name: null_mut(),
    namespace: null_mut(),
    id: null_mut(),
    name: null_mut(),
    trash: false,
};

impl Image {
    fn number(
        &self,
        call: unsafe extern "C" fn(super::api::Handle, *mut u64) -> c_int,
    ) -> Result<u64, Errno> {
        let mut value = 0;
        // SAFETY: `call` is one of librbd's functions of this shape; the image is open.
        check(unsafe { call(self.raw, &raw mut value) })?;
        Ok(value)
    }

    /// Bytes.
    pub(crate) fn size(&self) -> Result<u64, Errno> {
        self.number(self.rbd().rbd_get_size)
    }

    /// Feature bits.
    pub(crate) fn features(&self) -> Result<u64, Errno> {
        self.number(self.rbd().rbd_get_features)
    }

    /// Bytes.
    pub(crate) fn stripe_unit(&self) -> Result<u64, Errno> {
        self.number(self.rbd().rbd_get_stripe_unit)
    }

    /// Objects.
    pub(crate) fn stripe_count(&self) -> Result<u64, Errno> {
        self.number(self.rbd().rbd_get_stripe_count)
    }

    /// The id of the pool that the data is in.
    pub(crate) fn data_pool(&self) -> Result<String, Errno> {
        // SAFETY: the image is open.
        let id = unsafe { (self.rbd().rbd_get_data_pool_id)(self.raw) };
        self.pool.connection.pool_name(id)
    }

    /// The id that stays when the name changes.
    pub(crate) fn id(&self) -> Result<String, Errno> {
        let mut buffer = vec![0_u8; 256];
        let size = buffer.len();
        // SAFETY: the buffer is as long as is said.
        check(unsafe { (self.rbd().rbd_get_id)(self.raw, buffer.as_mut_ptr().cast(), size) })?;
        Ok(first(&buffer))
    }

    /// From what it was cloned, if it still shares data with that.
    pub(crate) fn parent(&self) -> Result<Option<Parent>, Errno> {
        let mut image = NO_LINK;
        let mut snap = SnapSpec { id: 0, namespace_type: 0, name: null_mut() };
        // SAFETY: the image is open, the call fills both.
        match check(unsafe { (self.rbd().rbd_get_parent)(self.raw, &raw mut image, &raw mut snap) }) {
            Err(Errno::NOENT) => return Ok(None),
            other => other?,
        };
        // SAFETY: a string that librbd made.
        let parent = Parent { image: linked(&image), snapshot: unsafe { copy(snap.name) } };
        // SAFETY: filled by librbd, freed once.
        unsafe {
            (self.rbd().rbd_linked_image_spec_cleanup)(&raw mut image);
            (self.rbd().rbd_snap_spec_cleanup)(&raw mut snap);
        }
        Ok(Some(parent))
    }

    /// The clones of its snapshots.
    pub(crate) fn children(&self) -> Result<Vec<Linked>, Errno> {
        let rbd = self.rbd();
        // SAFETY: the array has as many places as is said.
        let mut raw =
            filled(NO_LINK, |items, count| unsafe { (rbd.rbd_list_children3)(self.raw, items, count) })?;
        let children = raw.iter().map(linked).collect();
        // SAFETY: filled by librbd, freed once.
        unsafe { (rbd.rbd_linked_image_spec_list_cleanup)(raw.as_mut_ptr(), raw.len()) };
        Ok(children)
    }

    /// Its snapshots of the user's kind.
    pub(crate) fn snapshots(&self) -> Result<Vec<Snap>, Errno> {
        let rbd = self.rbd();
        let empty = SnapInfo { id: 0, size: 0, name: null_mut() };
        let mut room: c_int = 16;
        loop {
            let mut raw = vec![empty; usize::try_from(room).unwrap_or(0)];
            // SAFETY: the array has as many places as is said.
            let code = unsafe { (rbd.rbd_snap_list)(self.raw, raw.as_mut_ptr(), &raw mut room) };
            let count = match check(code) {
                Err(Errno::RANGE) => continue,
                other => usize::try_from(other?).unwrap_or(0),
            };
            let one = |raw: &SnapInfo| Snap {
                id: raw.id,
                // SAFETY: a string that librbd made for the entry.
                name: unsafe { copy(raw.name) },
                size: raw.size,
            };
            let all: Vec<Snap> = raw.iter().take(count).map(one).collect();
            // SAFETY: filled by librbd and ended by an entry without a name; freed once.
            unsafe { (rbd.rbd_snap_list_end)(raw.as_mut_ptr()) };
            let mut users = Vec::new();
            for snap in all {
                if self.is_users(snap.id)? {
                    users.push(snap);
                }
            }
            return Ok(users);
        }
    }

    /// Whether a snapshot is a user's: not a group's, and not one that was removed and lives on for its clones.
    fn is_users(&self, id: u64) -> Result<bool, Errno> {
        let mut kind = 0;
        // SAFETY: the image is open, the call writes the answer.
        match check(unsafe { (self.rbd().rbd_snap_get_namespace_type)(self.raw, id, &raw mut kind) }) {
            // Gone meanwhile.
            Err(Errno::NOENT) => Ok(false),
            other => other.map(|_| kind == 0),
        }
    }

    /// When a snapshot was taken: seconds and nanoseconds of the Unix epoch.
    pub(crate) fn snapshot_time(&self, id: u64) -> Result<(i64, i64), Errno> {
        let mut time = Timespec::default();
        // SAFETY: the image is open, the call writes the time.
        check(unsafe { (self.rbd().rbd_snap_get_timestamp)(self.raw, id, &raw mut time) })?;
        Ok((time.seconds, time.nanoseconds))
    }

    /// Who has it open for changes.
    pub(crate) fn watchers(&self) -> Result<Vec<Watcher>, Errno> {
        let rbd = self.rbd();
        let empty = WatcherInfo { address: null_mut(), id: 0, cookie: 0 };
        // SAFETY: the array has as many places as is said.
        let mut raw =
            filled(empty, |items, count| unsafe { (rbd.rbd_watchers_list)(self.raw, items, count) })?;
        let one = |raw: &WatcherInfo| Watcher {
            // SAFETY: a string that librbd made for the entry.
            address: unsafe { copy(raw.address) },
            client: raw.id,
            cookie: raw.cookie,
        };
        let watchers = raw.iter().map(one).collect();
        // SAFETY: filled by librbd, freed once.
        unsafe { (rbd.rbd_watchers_list_cleanup)(raw.as_mut_ptr(), raw.len()) };
        Ok(watchers)
    }

    /// Who holds its locks, managed and advisory.
    pub(crate) fn lockers(&self) -> Result<Vec<Locker>, Errno> {
        let mut room = 4096;
        loop {
            let mut sizes = [room; 4];
            let mut buffers = [(); 4].map(|()| vec![0_u8; room]);
            let mut exclusive = 0;
            let [tag, clients, cookies, addresses] = &mut buffers;
            let [tag_size, clients_size, cookies_size, addresses_size] = &mut sizes;
            // SAFETY: each buffer is as long as is said.
            let code = unsafe {
                (self.rbd().rbd_list_lockers)(
                    self.raw,
                    &raw mut exclusive,
                    tag.as_mut_ptr().cast(),
                    tag_size,
                    clients.as_mut_ptr().cast(),
                    clients_size,
                    cookies.as_mut_ptr().cast(),
                    cookies_size,
                    addresses.as_mut_ptr().cast(),
                    addresses_size,
                )
            };
            if code == -(Errno::RANGE.raw_os_error() as isize) && room < 1 << 20 {
                room *= 4;
                continue;
            }
            let count = check(c_int::try_from(code).unwrap_or(c_int::MAX))?;
            let count = usize::try_from(count).unwrap_or(0);
            let tag = first(&buffers[0]);
            let [_, clients, cookies, addresses] = buffers.map(|b| exactly(&b, count));
            let each = clients.into_iter().zip(cookies).zip(addresses);
            return Ok(each
                .map(|((client, cookie), address)| Locker {
                    client,
                    cookie,
                    address,
                    exclusive: exclusive != 0,
                    tag: tag.clone(),
                })
                .collect());
        }
    }
}
