//! What a staging file holds that nobody reads again goes back to the disk.
//!
//! A file that is written without a pause is never clean, and what an upload has brought into the bucket, or what was
//! written over after somebody was told that the disk has it, stays in its staging file: without this it only grows.

use std::io;
use std::sync::Arc;

use crate::fs::blocking::blocking;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::Inode;

impl FileSystem {
    /// Gives the disk back what of an inode's staging file nobody needs, if it has come to more than
    /// [`Settings::staging_slack`](crate::fs::Settings::staging_slack).
    pub(crate) async fn give_back_dead(self: &Arc<Self>, inode: &Inode) {
        // To write the journal anew shall not cost more than what comes of it.
        let (journal_bytes, _) = self.journal.bytes_and_synced();
        let slack = self.settings.staging_slack.max(journal_bytes);
        let dead = {
            let mut state = inode.state.lock();
            let staged = state.staged.as_mut();
            staged.and_then(|staged| staged.dead(slack))
        };
        let Some(dead) = dead.map(Arc::new) else {
            return;
        };
        // After a crash of the host a file is what somebody was told that the disk has, or later. The journal may say
        // so by way of what is to go, and takes for one chunk what is two here: the new one, which is on the disk
        // before the old one's room is given away, knows of nothing but what is in use.
        let given_back = match self.rewrite_journal().await {
            Ok(()) => {
                let punched = Arc::clone(&dead);
                blocking(move || punched.punch()).await
            }
            Err(error) => Err(io::Error::other(error)),
        };
        match given_back {
            Ok(()) => {
                if let Some(staged) = &mut inode.state.lock().staged {
                    staged.gave_back(&dead);
                }
            }
            Err(error) => tracing::warn!(
                bucket = %self.bucket.location(), ino = inode.ino, %error, bytes = dead.bytes(),
                "a staging file keeps what nobody needs of it",
            ),
        }
    }
}
