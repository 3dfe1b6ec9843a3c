//! The functions of librados and librbd that are used here, loaded at run time.
//!
//! Declared as in rados/librados.h and rbd/librbd.h of Ceph 16, which later versions keep. The few structs are laid
//! out as there.

use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::Library;

/// A handle of the libraries: a pointer whose target is theirs.
pub(super) type Handle = *mut c_void;
/// A C string that is only read.
pub(super) type Text = *const c_char;
/// `librbd_progress_fn_t`.
pub(super) type Progress = extern "C" fn(u64, u64, *mut c_void) -> c_int;
/// The callback of `rbd_diff_iterate2`.
pub(super) type Extent = extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;

/// `rbd_image_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ImageSpec {
    pub(super) id: *mut c_char,
    pub(super) name: *mut c_char,
}

/// `rbd_linked_image_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct LinkedImage {
    pub(super) pool_id: i64,
    pub(super) pool_name: *mut c_char,
    pub(super) namespace: *mut c_char,
    pub(super) id: *mut c_char,
    pub(super) name: *mut c_char,
    pub(super) trash: bool,
}

/// `rbd_snap_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct SnapSpec {
    pub(super) id: u64,
    pub(super) namespace_type: c_int,
    pub(super) name: *mut c_char,
}

/// `rbd_snap_info_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct SnapInfo {
    pub(super) id: u64,
    pub(super) size: u64,
    pub(super) name: *const c_char,
}

/// `rbd_trash_image_info_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct TrashInfo {
    pub(super) id: *mut c_char,
    pub(super) name: *mut c_char,
    pub(super) source: c_int,
    pub(super) deleted: i64,
    pub(super) deferred_until: i64,
}

/// `rbd_image_watcher_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct WatcherInfo {
    pub(super) address: *mut c_char,
    pub(super) id: i64,
    pub(super) cookie: u64,
}

/// `struct timespec`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Timespec {
    pub(super) seconds: i64,
    pub(super) nanoseconds: i64,
}

macro_rules! library {
    ($(#[$doc:meta])* $name:ident { $(fn $function:ident($($argument:ty),* $(,)?) $(-> $result:ty)?;)* }) => {
        $(#[$doc])*
        pub(super) struct $name {
            $(pub(super) $function: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            /// The functions live as long as the library is loaded.
            _library: Library,
        }

        impl $name {
            fn load(file: &str) -> Result<Self, libloading::Error> {
                // SAFETY: Ceph's libraries run no code of their own when loaded beyond C++ static initialisers.
                let library = unsafe { Library::new(file) }?;
                Ok(Self {
                    // SAFETY: the type of each function is that of the library's header.
                    $($function: unsafe { *library.get(concat!(stringify!($function), "\0").as_bytes())? },)*
                    _library: library,
                })
            }
        }
    };
}

library! {
    /// librados.so.2.
    Rados {
        fn rados_create2(*mut Handle, Text, Text, u64) -> c_int;
        fn rados_conf_read_file(Handle, Text) -> c_int;
        fn rados_conf_set(Handle, Text, Text) -> c_int;
        fn rados_conf_get(Handle, Text, *mut c_char, usize) -> c_int;
        fn rados_connect(Handle) -> c_int;
        fn rados_shutdown(Handle);
        fn rados_buffer_free(*mut c_char);
        fn rados_mon_command(Handle, *const Text, usize, Text, usize, *mut *mut c_char, *mut usize, *mut *mut c_char, *mut usize) -> c_int;
        fn rados_cluster_fsid(Handle, *mut c_char, usize) -> c_int;
        fn rados_getaddrs(Handle, *mut *mut c_char) -> c_int;
        fn rados_wait_for_latest_osdmap(Handle) -> c_int;
        fn rados_pool_reverse_lookup(Handle, i64, *mut c_char, usize) -> c_int;
        fn rados_ioctx_create(Handle, Text, *mut Handle) -> c_int;
        fn rados_ioctx_destroy(Handle);
        fn rados_ioctx_get_id(Handle) -> i64;
        fn rados_ioctx_set_namespace(Handle, Text);
        fn rados_exec(Handle, Text, Text, Text, *const u8, usize, *mut u8, usize) -> c_int;
        fn rados_remove(Handle, Text) -> c_int;
        fn rados_break_lock(Handle, Text, Text, Text, Text) -> c_int;
        fn rados_create_read_op() -> Handle;
        fn rados_release_read_op(Handle);
        fn rados_read_op_exec(Handle, Text, Text, *const u8, usize, *mut *mut c_char, *mut usize, *mut c_int);
        fn rados_read_op_omap_get_vals2(Handle, Text, Text, u64, *mut Handle, *mut u8, *mut c_int);
        fn rados_read_op_operate(Handle, Handle, Text, c_int) -> c_int;
        fn rados_omap_get_next2(Handle, *mut *mut c_char, *mut *mut c_char, *mut usize, *mut usize) -> c_int;
        fn rados_omap_get_end(Handle);
        fn rados_create_write_op() -> Handle;
        fn rados_release_write_op(Handle);
        fn rados_write_op_omap_set2(Handle, *const Text, *const Text, *const usize, *const usize, usize);
        fn rados_write_op_omap_rm_keys2(Handle, *const Text, *const usize, usize);
        fn rados_write_op_omap_cmp2(Handle, Text, u8, *const u8, usize, usize, *mut c_int);
        fn rados_write_op_cmpext(Handle, *const u8, usize, u64, *mut c_int);
        fn rados_write_op_create(Handle, c_int, Text);
        fn rados_write_op_write_full(Handle, *const u8, usize);
        fn rados_write_op_remove(Handle);
        fn rados_write_op_exec(Handle, Text, Text, *const u8, usize, *mut c_int);
        fn rados_write_op_operate(Handle, Handle, Text, *const c_void, c_int) -> c_int;
    }
}

library! {
    /// librbd.so.1.
    Rbd {
        fn rbd_image_options_create(*mut Handle);
        fn rbd_image_options_destroy(Handle);
        fn rbd_image_options_set_uint64(Handle, c_int, u64) -> c_int;
        fn rbd_image_options_set_string(Handle, c_int, Text) -> c_int;
        fn rbd_create4(Handle, Text, u64, Handle) -> c_int;
        fn rbd_clone3(Handle, Text, Text, Handle, Text, Handle) -> c_int;
        fn rbd_remove(Handle, Text) -> c_int;
        fn rbd_rename(Handle, Text, Text) -> c_int;
        fn rbd_list2(Handle, *mut ImageSpec, *mut usize) -> c_int;
        fn rbd_image_spec_list_cleanup(*mut ImageSpec, usize);
        fn rbd_trash_move(Handle, Text, u64) -> c_int;
        fn rbd_trash_list(Handle, *mut TrashInfo, *mut usize) -> c_int;
        fn rbd_trash_list_cleanup(*mut TrashInfo, usize);
        fn rbd_trash_remove(Handle, Text, bool) -> c_int;
        fn rbd_namespace_list(Handle, *mut c_char, *mut usize) -> c_int;
        fn rbd_open_by_id(Handle, Text, *mut Handle, Text) -> c_int;
        fn rbd_open_by_id_read_only(Handle, Text, *mut Handle, Text) -> c_int;
        fn rbd_close(Handle) -> c_int;
        fn rbd_get_size(Handle, *mut u64) -> c_int;
        fn rbd_get_features(Handle, *mut u64) -> c_int;
        fn rbd_get_id(Handle, *mut c_char, usize) -> c_int;
        fn rbd_get_stripe_unit(Handle, *mut u64) -> c_int;
        fn rbd_get_stripe_count(Handle, *mut u64) -> c_int;
        fn rbd_get_data_pool_id(Handle) -> i64;
        fn rbd_get_parent(Handle, *mut LinkedImage, *mut SnapSpec) -> c_int;
        fn rbd_linked_image_spec_cleanup(*mut LinkedImage);
        fn rbd_snap_spec_cleanup(*mut SnapSpec);
        fn rbd_resize2(Handle, u64, bool, Progress, *mut c_void) -> c_int;
        fn rbd_snap_list(Handle, *mut SnapInfo, *mut c_int) -> c_int;
        fn rbd_snap_list_end(*mut SnapInfo);
        fn rbd_snap_get_namespace_type(Handle, u64, *mut c_int) -> c_int;
        fn rbd_snap_create(Handle, Text) -> c_int;
        fn rbd_snap_remove(Handle, Text) -> c_int;
        fn rbd_snap_get_timestamp(Handle, u64, *mut Timespec) -> c_int;
        fn rbd_flatten_with_progress(Handle, Progress, *mut c_void) -> c_int;
        fn rbd_list_children3(Handle, *mut LinkedImage, *mut usize) -> c_int;
        fn rbd_linked_image_spec_list_cleanup(*mut LinkedImage, usize);
        fn rbd_list_lockers(Handle, *mut c_int, *mut c_char, *mut usize, *mut c_char, *mut usize, *mut c_char, *mut usize, *mut c_char, *mut usize) -> isize;
        fn rbd_lock_acquire(Handle, c_int) -> c_int;
        fn rbd_lock_release(Handle) -> c_int;
        fn rbd_is_exclusive_lock_owner(Handle, *mut c_int) -> c_int;
        fn rbd_break_lock(Handle, Text, Text) -> c_int;
        fn rbd_watchers_list(Handle, *mut WatcherInfo, *mut usize) -> c_int;
        fn rbd_watchers_list_cleanup(*mut WatcherInfo, usize);
        fn rbd_diff_iterate2(Handle, Text, u64, u64, u8, u8, Extent, *mut c_void) -> c_int;
    }
}

/// Both libraries.
pub(super) struct Api {
    pub(super) rados: Rados,
    pub(super) rbd: Rbd,
}

/// The libraries, loaded at the first call; else why they are not.
pub(super) fn api() -> Result<&'static Api, &'static str> {
    static API: OnceLock<Result<Api, String>> = OnceLock::new();
    let load = || {
        let rados = Rados::load("librados.so.2").map_err(|e| e.to_string())?;
        let rbd = Rbd::load("librbd.so.1").map_err(|e| e.to_string())?;
        super::exit_without_theirs();
        Ok(Api { rados, rbd })
    };
    API.get_or_init(load).as_ref().map_err(String::as_str)
}
