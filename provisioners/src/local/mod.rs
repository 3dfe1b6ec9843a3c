//! The `local` backend: files and directories on the node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Result;

/// What the local backend asks of the node that it runs on. `csi/src/host/` implements it.
pub trait LocalHost: Send + Sync + 'static {
    /// Who uses a file or directory: loop devices over the file, and mount points of it or of those devices.
    /// Empty: nobody.
    fn users(&self, data: &Path) -> Result<Vec<String>>;

    /// Stops writes to the file systems mounted from these backing files until the guard is dropped, for at most
    /// `limit`; also ends when this process dies. Files that nobody has mounted need nothing.
    /// A backing file in use as a raw block device cannot be stopped: [`crate::Error::Refused`].
    fn quiesce(&self, data: &[PathBuf], limit: Duration) -> Result<Box<dyn Quiesced>>;

    /// Tells the loop device over the file, if there is one, that the file has grown.
    fn grown(&self, data: &Path) -> Result<()>;

    /// Detaches loop devices over the file that nothing uses any more (left by a crash), so that it can be deleted.
    fn release(&self, data: &Path) -> Result<()>;
}

/// Writes are stopped while this lives.
pub trait Quiesced: Send {
    /// Lets writes go on. Fails when they went on before this call (the limit passed), so what was copied
    /// meanwhile must be thrown away.
    fn resume(self: Box<Self>) -> Result<()>;
}
