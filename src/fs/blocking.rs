//! What waits for the disk, off the runtime's own threads.

use std::io;

/// Does `work` on a thread that may wait. It is done to its end, whoever stops waiting for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other).flatten()
}
