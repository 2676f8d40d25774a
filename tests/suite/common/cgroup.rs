//! Control groups that limit memory.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::Pid;

/// A control group whose processes may have so much memory.
pub(crate) struct Memory {
    directory: PathBuf,
    limit: &'static str,
    unlimited: &'static str,
}

impl Memory {
    /// `None`: this machine's control groups do not limit memory for us.
    pub(crate) fn limited(bytes: u64) -> Option<Self> {
        let name = format!("bucketvol-test-{}", uuid::Uuid::new_v4().simple());
        let (v1, v2) = (
            PathBuf::from("/sys/fs/cgroup/memory"),
            PathBuf::from("/sys/fs/cgroup"),
        );
        let (above, limit, unlimited) = match v1.join("memory.limit_in_bytes").exists() {
            true => (v1, "memory.limit_in_bytes", "-1"),
            false => (v2, "memory.max", "max"),
        };
        let directory = above.join(name);
        fs::create_dir(&directory).ok()?;
        let memory = Self {
            directory,
            limit,
            unlimited,
        };
        fs::write(memory.directory.join(limit), bytes.to_string()).ok()?;
        Some(memory)
    }

    pub(crate) fn take(&self, process: Pid) {
        let processes = self.directory.join("cgroup.procs");
        fs::write(processes, process.to_string()).expect("it is moved");
    }

    pub(crate) fn lift(&self) {
        fs::write(self.directory.join(self.limit), self.unlimited).expect("no limit");
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Those in it have ended; the kernel may need a moment to know.
        for _ in 0..100 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
