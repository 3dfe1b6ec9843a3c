//! librbd without the driver: what the benches measure against.

use std::sync::Arc;

use super::config::RbdConfig;
use super::ffi::{ImageOptions, Pool};
use super::handle::Place;
use super::store::Store;
use crate::{Error, Result, Secrets};

/// A pool or namespace, and the calls of librbd on it. Every call blocks.
pub struct Bare {
    pool: Arc<Pool>,
    options: ImageOptions,
}

impl Bare {
    /// Connects. `features` are bits of rbd/features.h.
    pub fn connect(config: RbdConfig, place: &Place, features: u64) -> Result<Self> {
        let site = Store::new(config)?.site(place, &Secrets::default())?;
        let options = ImageOptions { features: Some(features), ..ImageOptions::default() };
        Ok(Self { pool: site.pool, options })
    }

    /// `rbd_create4`.
    pub fn create(&self, name: &str, bytes: u64) -> Result<()> {
        self.pool.create(name, bytes, &self.options).map_err(|e| failed(name, e))
    }

    /// `rbd_remove`.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.pool.remove(name).map_err(|e| failed(name, e))
    }

    /// How many images are in the trash.
    pub fn trash(&self) -> Result<usize> {
        self.pool.trash_list().map(|all| all.len()).map_err(|e| failed("the trash", e))
    }
}

fn failed(name: &str, errno: super::ffi::Errno) -> Error {
    Error::io(name, std::io::Error::from(errno))
}
