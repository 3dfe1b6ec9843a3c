//! librados and librbd behind safe types: the only unsafe code of the project.
//!
//! Everything here blocks. Errors are the library's errno; what they mean for a volume is said in `rbd/errors.rs`.
//! What makes it sound: a handle is made and destroyed by the type that owns it; a type that uses another's handle
//! keeps it alive by an `Arc`; both libraries allow calls from several threads on one handle (librados.h "thread
//! safety": all but changes of an I/O context's settings, which are made before it is shared).

#![allow(unsafe_code)]

mod api;
mod connection;
mod image;
mod inspect;
mod object;
mod pool;

use std::ffi::{CStr, CString, c_char, c_int, c_void};

pub(crate) use connection::{CommandError, Connection, Key, Settings};
pub(crate) use image::Image;
pub(crate) use inspect::{Linked, Locker, Watcher};
pub(crate) use pool::{ImageOptions, Pool};

/// What the libraries answer when they fail: an errno of Linux.
pub(crate) type Errno = rustix::io::Errno;

/// What a comparison that fails answers, less the offset of the first difference: `-MAX_ERRNO`.
const DIFFERS: c_int = -4095;

/// The libraries' result: negative is an errno.
fn check(code: c_int) -> Result<c_int, Errno> {
    if code <= DIFFERS {
        return Err(Errno::CANCELED);
    }
    if code < 0 { Err(Errno::from_raw_os_error(-code)) } else { Ok(code) }
}

/// Ends the process without the exit handlers of the libraries (_exit(2)).
pub fn exit(code: u8) -> ! {
    unsafe extern "C" {
        fn _exit(code: c_int) -> !;
    }
    // SAFETY: it takes any number, touches no memory, and does not return.
    unsafe { _exit(c_int::from(code)) }
}

/// Has exit(3) end the process without the exit handlers of the libraries, from now on: they take down what a thread of
/// theirs or of ours may still be in. Called once they are loaded: handlers run in the reverse order.
fn exit_without_theirs() {
    unsafe extern "C" {
        // glibc's: an exit handler that is told the exit code.
        fn on_exit(handler: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    }
    extern "C" fn end(code: c_int, _: *mut c_void) {
        exit(u8::try_from(code & 0xff).unwrap_or(1));
    }
    // SAFETY: the handler is there as long as the program, and uses no argument.
    let failed = unsafe { on_exit(end, std::ptr::null_mut()) };
    if failed != 0 {
        tracing::warn!("no exit handler; librados may abort this process at its end");
    }
}

/// A text for C. One with a NUL byte is EINVAL.
fn text(text: &str) -> Result<CString, Errno> {
    CString::new(text).map_err(|_| Errno::INVAL)
}

/// A copy of a C string; null is empty.
///
/// # Safety
/// The pointer is null or points to a NUL-terminated string.
unsafe fn copy(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// The texts in a buffer that are each ended by NUL.
fn split(buffer: &[u8]) -> Vec<String> {
    let texts = buffer.split(|byte| *byte == 0).filter(|text| !text.is_empty());
    texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// The first `count` texts in a buffer, each ended by NUL; they may be empty.
fn exactly(buffer: &[u8], count: usize) -> Vec<String> {
    let texts = buffer.split(|byte| *byte == 0).take(count);
    texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// A text in a buffer up to its NUL.
fn first(buffer: &[u8]) -> String {
    split(buffer).into_iter().next().unwrap_or_default()
}

/// Calls a function that fills an array of `T` and answers ERANGE with the number it needs, until it fits.
fn filled<T: Clone>(empty: T, call: impl Fn(*mut T, &mut usize) -> c_int) -> Result<Vec<T>, Errno> {
    let mut count = 16;
    loop {
        let mut items = vec![empty.clone(); count];
        let before = count;
        match check(call(items.as_mut_ptr(), &mut count)) {
            Ok(_) => {
                items.truncate(count.min(before));
                return Ok(items);
            }
            Err(Errno::RANGE) => count = count.max(before * 2),
            Err(error) => return Err(error),
        }
    }
}

/// Whether Ceph's libraries are here; else why not.
pub(crate) fn available() -> Result<(), &'static str> {
    api::api().map(drop)
}
