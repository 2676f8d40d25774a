//! The distribution's s3fs on the same bucket: each shows what the other has written.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::common::mounted::Mounted;
use crate::common::process::{bounded, end, succeed, wait_for};
use crate::common::s3::{Account, LocalS3, scratch};

use super::has;

/// A mount of the account's bucket by s3fs; it goes with the value.
struct S3fs {
    process: Child,
    place: TempDir,
}

impl S3fs {
    fn mount(account: &Account) -> Self {
        Self::with(account, "")
    }

    /// With further options; each has a comma before it.
    fn with(account: &Account, options: &str) -> Self {
        let place = tempfile::Builder::new()
            .prefix("bucketvol-test-s3fs-")
            .tempdir_in(scratch())
            .expect("a place for the mount");
        for name in ["mnt", "tmp"] {
            std::fs::create_dir(place.path().join(name)).expect("a directory");
        }
        let log = std::fs::File::create(place.path().join("log")).expect("a log");
        // In the foreground: it is ours to end.
        let mut command = Command::new("s3fs");
        command.arg(&account.bucket).arg(place.path().join("mnt"));
        let (url, region) = (&account.endpoint, &account.region);
        let options = format!("url={url},endpoint={region},use_path_request_style{options}");
        command.args(["-f", "-o", &options]);
        command.args([
            "-o",
            &format!("tmpdir={}", place.path().join("tmp").display()),
        ]);
        let process = command
            .env("AWS_ACCESS_KEY_ID", &account.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &account.secret_access_key)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("s3fs runs");
        let mounted = Self { process, place };
        wait_for("s3fs", Duration::from_secs(20), || {
            let mut look = bounded(5, "mountpoint");
            let look = look.arg("-q").arg(mounted.path()).status();
            look.is_ok_and(|status| status.success())
        });
        mounted
    }

    fn path(&self) -> PathBuf {
        self.place.path().join("mnt")
    }

    fn sh(&self, script: &str) -> String {
        let mut command = bounded(60, "sh");
        command.args(["-ec", script]).current_dir(self.path());
        succeed(command.env("LC_ALL", "C.UTF-8"))
    }

    /// When it has ended, everything it was told is in the bucket.
    fn unmount(mut self) {
        succeed(bounded(20, "umount").arg(self.path()));
        self.process.wait().expect("it ends with its mount");
    }
}

impl Drop for S3fs {
    fn drop(&mut self) {
        let _ = bounded(10, "umount")
            .arg("--lazy")
            .arg(self.path())
            .output();
        end(&mut self.process, Duration::from_secs(10));
    }
}

/// The time comes last, after what changes it; `large` is of a size that s3fs sends in parts.
const MAKE: &str = "
    echo bytes >file; chown 12:34 file; chmod 4640 file; touch -d @1500000000.123456789 file
    : >empty; chmod 600 empty; touch -d @1400000000.5 empty
    seq 3500000 >large
    mkdir -p dir/sub; echo inner >dir/inner; echo odd >'dir/odd ü name+%41&?'
    chown 56:78 dir; chmod 1750 dir; touch -d @1200000000.125 dir
    ln -s dir/inner link; touch -h -d @1300000000.25 link; ln -s '../über weg' dangling
    mkfifo pipe; chmod 604 pipe; chown 9:10 pipe; touch -d @1600000000.75 pipe";

/// s3fs shows a directory's own time and size as it likes, and what was written without a touch to the second.
const SHOW: &str = "
    ls -A . dir dir/sub
    stat -c '%n %A %u:%g %s' file empty large link dangling pipe 'dir/inner' 'dir/odd ü name+%41&?'
    stat -c '%n %A %u:%g' dir dir/sub
    stat -c '%n %.9Y' file empty link pipe dir
    readlink link dangling; cat file empty dir/inner link 'dir/odd ü name+%41&?'; sha256sum large";

fn each_shows_what_the_other_has_written(ours_first: &Account, theirs_first: &Account) {
    let mut mounted = Mounted::by_root(ours_first, "");
    mounted.sh(MAKE);
    let ours = mounted.sh(SHOW);
    mounted.unmount();
    let s3fs = S3fs::mount(ours_first);
    assert_eq!(s3fs.sh(SHOW), ours);
    // And what it then changes of ours.
    s3fs.sh(
        "echo more >>file; chmod 640 pipe; mv dir/inner dir/moved; mv dir elsewhere; rm empty; chown 1:2 link -h",
    );
    let show = "ls -A . elsewhere; stat -c '%n %A %u:%g %s' file pipe elsewhere/moved large
        cat file elsewhere/moved 'elsewhere/odd ü name+%41&?'; stat -c %u:%g link elsewhere; sha256sum large";
    let theirs = s3fs.sh(show);
    s3fs.unmount();
    let again = Mounted::by_root(ours_first, "");
    assert_eq!(again.sh(show), theirs);

    let s3fs = S3fs::mount(theirs_first);
    s3fs.sh(MAKE);
    let theirs = s3fs.sh(SHOW);
    s3fs.unmount();
    let mut mounted = Mounted::by_root(theirs_first, "");
    assert_eq!(mounted.sh(SHOW), theirs);
    mounted.sh(
        "echo more >>file; chmod 640 pipe; mv dir/inner dir/moved; mv dir elsewhere; rm empty; chown -h 1:2 link",
    );
    let ours = mounted.sh(show);
    mounted.unmount();
    assert_eq!(S3fs::mount(theirs_first).sh(show), ours);
}

#[test]
fn s3fs_shows_what_we_have_written_and_we_what_it_has() {
    if has(&["s3fs"]) {
        let (one, other) = (LocalS3::start(), LocalS3::start());
        each_shows_what_the_other_has_written(one.account(), other.account());
    }
}

#[cfg(feature = "s3-tests")]
#[test]
fn s3fs_shows_what_we_have_written_and_we_what_it_has_on_garage() {
    use crate::common::garage::Garage;

    if has(&["s3fs"]) {
        let (one, other) = (Garage::start(), Garage::start());
        each_shows_what_the_other_has_written(one.account(), other.account());
    }
}

#[test]
fn extended_attributes_of_s3fs_are_ours_and_ours_are_its() {
    if !has(&["s3fs", "setfattr"]) {
        return;
    }
    let make = "echo x >file; mkdir dir; setfattr -n user.a -v hello file
        setfattr -n user.bytes -v 0sAAECAwQ= file; setfattr -n user.text -v 'ü %' dir";
    // s3fs keeps no empty value.
    let change = "setfattr -x user.a file; setfattr -n user.more -v 1 file; setfattr -n user.text -v other dir";
    let show = "getfattr -d -e base64 file dir";
    let (one, other) = (LocalS3::start(), LocalS3::start());
    let by_s3fs = |account: &Account, script: &str| {
        let s3fs = S3fs::with(account, ",use_xattr=1");
        let said = s3fs.sh(&format!("{script}; {show}"));
        s3fs.unmount();
        said
    };
    let by_us = |account: &Account, script: &str| {
        let mut mounted = Mounted::with(account, "xattr");
        let said = mounted.sh(&format!("{script}; {show}"));
        mounted.unmount();
        said
    };
    let made = by_us(one.account(), make);
    assert_eq!(made.matches("user.").count(), 3, "{made}");
    assert_eq!(by_s3fs(one.account(), ":"), made);
    let changed = by_s3fs(one.account(), change);
    assert_ne!(changed, made);
    assert_eq!(by_us(one.account(), ":"), changed);

    assert_eq!(by_s3fs(other.account(), make), made);
    assert_eq!(by_us(other.account(), ":"), made);
    assert_eq!(by_us(other.account(), change), changed);
    assert_eq!(by_s3fs(other.account(), ":"), changed);
}
