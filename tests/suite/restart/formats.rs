//! An upgrade to a release of a newer format, and the way back, with bytes that are not in the bucket.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use super::*;

/// The release before, as far as formats go.
const BEFORE: &str = env!("CARGO_BIN_EXE_bucketvol-format-before");
const CURRENT: &str = env!("CARGO_BIN_EXE_bucketvol");

/// A mount, and a file on it that is open and has bytes the bucket has not.
struct Dirty<'a> {
    place: &'a Place,
    /// Closed before the server goes.
    file: File,
    server: LocalS3,
    written: String,
}

impl<'a> Dirty<'a> {
    fn new(place: &'a Place, program: &str, trial: &str) -> Self {
        place.upgrade(|path| copy(Path::new(program), path));
        let server = LocalS3::start();
        let account = server.account();
        let options = format!(
            "endpoint={},region={},access_key_id={},secret_access_key={},upload_delay=1h,max_dirty_age=1h",
            account.endpoint, account.region, account.access_key_id, account.secret_access_key
        );
        let (url, mount) = (format!("s3://{}", account.bucket), mount_of(place));
        let trial = format!("--trial={trial}");
        let mounted = place.bucketvol(&[
            "mount",
            &url,
            &mount,
            "--background",
            &trial,
            "-o",
            &options,
        ]);
        assert!(mounted.status.success(), "{}", describe(&mounted));
        let mut open = OpenOptions::new();
        let file = open.create(true).read(true).append(true);
        let mut dirty = Self {
            place,
            file: file.open(place.path("mnt/file")).unwrap(),
            server,
            written: String::new(),
        };
        dirty.write("begun");
        dirty
    }

    fn write(&mut self, text: &str) {
        self.file.write_all(text.as_bytes()).unwrap();
        self.written.push_str(text);
        let mut read = vec![0; self.written.len()];
        self.file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(String::from_utf8_lossy(&read), self.written);
    }

    fn is_dirty(&self) -> bool {
        let stored = self.server.account().get("file");
        stored.as_deref() != Some(self.written.as_bytes())
    }

    fn restart_with(&self, program: &str) -> Output {
        assert!(self.is_dirty());
        self.place.upgrade(|path| copy(Path::new(program), path));
        self.place.bucketvol(&["restart", &mount_of(self.place)])
    }

    /// The format of the journal.
    fn format(&self) -> u32 {
        let mut pending = vec![self.place.path("home")];
        while let Some(path) = pending.pop() {
            if path.ends_with("journal") {
                let header = fs::read(path).unwrap();
                return u32::from_le_bytes(header[8..12].try_into().unwrap());
            }
            if let Ok(entries) = fs::read_dir(path) {
                pending.extend(entries.map(|entry| entry.unwrap().path()));
            }
        }
        panic!("there is no journal");
    }

    fn ends_in_the_bucket(self) {
        assert!(self.is_dirty());
        drop(self.file);
        let unmounted = self.place.bucketvol(&["unmount", &mount_of(self.place)]);
        assert!(unmounted.status.success(), "{}", describe(&unmounted));
        let stored = self.server.account().get("file").unwrap();
        assert_eq!(String::from_utf8_lossy(&stored), self.written);
    }
}

fn mount_of(place: &Place) -> String {
    place.path("mnt").display().to_string()
}

#[test]
fn open_files_and_their_bytes_go_through_an_upgrade_and_back() {
    let place = Place::new();
    let mut dirty = Dirty::new(&place, BEFORE, "1h");
    for (program, text) in [
        (CURRENT, " upgraded"),
        (BEFORE, " back"),
        (CURRENT, " again"),
    ] {
        let restarted = dirty.restart_with(program);
        assert!(restarted.status.success(), "{}", describe(&restarted));
        dirty.write(text);
        // Whoever may have to take over can read it.
        assert_eq!(dirty.format(), 2);
    }
    dirty.ends_in_the_bucket();
}

#[test]
fn an_older_release_that_cannot_read_what_is_there_gives_way_and_nothing_is_lost() {
    let place = Place::new();
    let mut dirty = Dirty::new(&place, BEFORE, "1ms");
    let upgraded = dirty.restart_with(CURRENT);
    assert!(upgraded.status.success(), "{}", describe(&upgraded));
    dirty.write(" upgraded");
    wait_for("it is trusted", PATIENCE, || dirty.format() == 3);
    dirty.write(" trusted");

    let refused = dirty.restart_with(BEFORE);
    assert_eq!(refused.status.code(), Some(1), "{}", describe(&refused));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("runs the old executable"), "{said}");
    dirty.write(" and goes on");
    dirty.ends_in_the_bucket();
}
