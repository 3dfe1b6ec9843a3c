//! A connection to one cluster as one user.

use std::ffi::{c_char, c_int};
use std::fmt;
use std::path::PathBuf;
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::time::Duration;

use super::api::{Api, Handle, api};
use super::{Errno, check, copy, first, text};

/// A user's secret key: not in `Debug`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key(pub(crate) String);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// With whom to connect, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Settings {
    /// `mon_host`; empty: as the configuration file says.
    pub(crate) monitors: String,
    /// The user without `client.`.
    pub(crate) user: String,
    /// Its key; none: as the configuration file's keyring has it.
    pub(crate) key: Option<Key>,
    /// A ceph.conf to read first.
    pub(crate) conf: Option<PathBuf>,
    /// How long connecting, a monitor's answer or one operation of a storage daemon may take.
    pub(crate) timeout: Duration,
}

/// What a monitor said to a command that failed.
#[derive(Debug, Clone)]
pub(crate) struct CommandError {
    pub(crate) errno: Errno,
    pub(crate) text: String,
}

/// Connected: closed when it is dropped.
pub(crate) struct Connection {
    pub(super) api: &'static Api,
    pub(super) raw: Handle,
}

// SAFETY: a rados_t may be used from any thread, several at once (librados.h).
unsafe impl Send for Connection {}
// SAFETY: as above.
unsafe impl Sync for Connection {}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the handle was made by rados_create2 and is destroyed once; pools and images keep the connection.
        unsafe { (self.api.rados.rados_shutdown)(self.raw) }
    }
}

impl Connection {
    /// Connects. Without the libraries: ENOSYS (ask [`super::available`] first).
    pub(crate) fn open(settings: &Settings) -> Result<Arc<Self>, Errno> {
        let api = api().map_err(|_| Errno::NOSYS)?;
        let (cluster, user) = (text("ceph")?, text(&format!("client.{}", settings.user))?);
        let mut raw = null_mut();
        // SAFETY: the strings live through the call, `raw` is written by it.
        check(unsafe { (api.rados.rados_create2)(&raw mut raw, cluster.as_ptr(), user.as_ptr(), 0) })?;
        let connection = Self { api, raw };
        if let Some(conf) = &settings.conf {
            let path = text(&conf.to_string_lossy())?;
            // SAFETY: a handle that is not connected yet, and a string that lives through the call.
            check(unsafe { (api.rados.rados_conf_read_file)(raw, path.as_ptr()) })?;
        }
        connection.configure(settings)?;
        // SAFETY: the handle is made and configured.
        check(unsafe { (api.rados.rados_connect)(raw) })?;
        Ok(Arc::new(connection))
    }

    fn configure(&self, settings: &Settings) -> Result<(), Errno> {
        let limit = settings.timeout.as_secs().max(1);
        // After this long a call makes librados ask for a new map. With Ceph's ten seconds, seen every five, calls that are
        // given up sooner would go to the daemons' old addresses for ever.
        let late = (limit / 4).clamp(1, 10);
        let (seconds, late, tick) = (limit.to_string(), late.to_string(), late.div_ceil(2).to_string());
        let mut options = vec![
            ("client_mount_timeout", seconds.as_str()),
            ("rados_mon_op_timeout", &seconds),
            ("rados_osd_op_timeout", &seconds),
            ("objecter_timeout", &late),
            ("objecter_tick_interval", &tick),
            // Every line would go to this process's output; errors come back as results.
            ("log_to_stderr", "false"),
            ("err_to_stderr", "false"),
            ("log_file", ""),
            ("admin_socket", ""),
            ("rbd_cache", "false"),
            ("rbd_default_clone_format", "2"),
        ];
        if !settings.monitors.is_empty() {
            options.push(("mon_host", &settings.monitors));
        }
        if let Some(Key(key)) = &settings.key {
            options.extend([("key", key.as_str()), ("keyring", "/dev/null")]);
        }
        options.iter().try_for_each(|(name, value)| self.set(name, value))
    }

    fn set(&self, name: &str, value: &str) -> Result<(), Errno> {
        let (name, value) = (text(name)?, text(value)?);
        // SAFETY: both strings live through the call.
        check(unsafe { (self.api.rados.rados_conf_set)(self.raw, name.as_ptr(), value.as_ptr()) }).map(drop)
    }

    /// A setting as the connection has it, such as `mon_host`.
    pub(crate) fn setting(&self, name: &str) -> Result<String, Errno> {
        let name = text(name)?;
        let mut buffer = vec![0_u8; 4096];
        // SAFETY: the buffer is as long as is said.
        let code = unsafe {
            (self.api.rados.rados_conf_get)(self.raw, name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
        };
        check(code)?;
        Ok(first(&buffer))
    }

    /// The cluster's fsid.
    pub(crate) fn fsid(&self) -> Result<String, Errno> {
        let mut buffer = vec![0_u8; 64];
        let size = buffer.len();
        // SAFETY: the buffer is as long as is said.
        check(unsafe { (self.api.rados.rados_cluster_fsid)(self.raw, buffer.as_mut_ptr().cast(), size) })?;
        Ok(first(&buffer))
    }

    /// This client's own address with its nonce, as other clients see it: `10.0.0.1:0/123`.
    pub(crate) fn address(&self) -> Result<String, Errno> {
        let mut address = null_mut();
        // SAFETY: the call gives a string of its own, freed below.
        check(unsafe { (self.api.rados.rados_getaddrs)(self.raw, &raw mut address) })?;
        // SAFETY: NUL-terminated, by librados.
        let copied = unsafe { copy(address) };
        // SAFETY: allocated by librados for us.
        unsafe { (self.api.rados.rados_buffer_free)(address) };
        Ok(copied)
    }

    /// Waits until this client has the newest map of the cluster, such as one with a new blocklist entry.
    pub(crate) fn latest_map(&self) -> Result<(), Errno> {
        // SAFETY: the handle is connected.
        check(unsafe { (self.api.rados.rados_wait_for_latest_osdmap)(self.raw) }).map(drop)
    }

    /// A pool's name.
    pub(crate) fn pool_name(&self, id: i64) -> Result<String, Errno> {
        let mut buffer = vec![0_u8; 512];
        let size = buffer.len();
        // SAFETY: the buffer is as long as is said.
        let code = unsafe {
            (self.api.rados.rados_pool_reverse_lookup)(self.raw, id, buffer.as_mut_ptr().cast(), size)
        };
        check(code)?;
        Ok(first(&buffer))
    }

    /// A command to the monitors in JSON, such as `{"prefix": "df", "format": "json"}`; their output.
    pub(crate) fn command(&self, command: &str) -> Result<Vec<u8>, CommandError> {
        let failed = |errno| CommandError { errno, text: String::new() };
        let command = text(command).map_err(failed)?;
        let (mut out, mut out_len, mut status, mut status_len) = (null_mut(), 0, null_mut(), 0);
        // SAFETY: one command, no input; the two outputs are buffers of librados, taken over below.
        let code: c_int = unsafe {
            (self.api.rados.rados_mon_command)(
                self.raw,
                [command.as_ptr()].as_ptr(),
                1,
                null(),
                0,
                &raw mut out,
                &raw mut out_len,
                &raw mut status,
                &raw mut status_len,
            )
        };
        let (out, status) = (self.take(out, out_len), self.take(status, status_len));
        let text = String::from_utf8_lossy(&status).into_owned();
        check(code).map(|_| out).map_err(|errno| CommandError { errno, text })
    }

    /// Copies and frees a buffer that librados gave.
    pub(super) fn take(&self, buffer: *mut c_char, length: usize) -> Vec<u8> {
        if buffer.is_null() {
            return Vec::new();
        }
        // SAFETY: librados says how long its buffer is.
        let copied = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), length) }.to_vec();
        // SAFETY: allocated by librados for us, and not used any more.
        unsafe { (self.api.rados.rados_buffer_free)(buffer) };
        copied
    }
}
