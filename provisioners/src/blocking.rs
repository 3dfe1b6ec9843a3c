//! Work that blocks, on a thread for it.

use std::sync::Arc;

use crate::{Error, Result};

/// Runs work on a thread that may block. It goes on to its end when the caller goes away. `kind` is the backend's.
pub(crate) async fn blocking<S: Send + Sync + 'static, T: Send + 'static>(
    kind: &'static str,
    store: Arc<S>,
    work: impl FnOnce(&S) -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(move || work(&store)).await;
    done.unwrap_or_else(|e| Err(Error::Internal(format!("the {kind} backend's work ended early: {e}"))))
}
