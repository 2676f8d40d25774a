//! What POSIX says of files, tested by programs that others wrote for that: `scripts/posix-tools.sh` builds them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;

use tempfile::NamedTempFile;

use crate::common::mounted::Mounted;
use crate::common::process::{bounded, cannot_run, describe, output};
use crate::common::s3::{LocalS3, scratch};
use crate::common::tools::built;

/// Two users that every Debian has, and each one's group.
const USERS: &str = r#"[["nobody", "nogroup"], ["daemon", "daemon"]]"#;

/// Cases that fail on S3, by the ends of their names, and why.
const ON_S3: [(&str, &str); 1] = [(
    "::enametoolong_path",
    "their directories are as deep as Linux has them, and a key has 1024 bytes",
)];

/// One fails now and then, and why.
const SOMETIMES: (&str, &str) = (
    "open::etxtbsy",
    "of a program that runs, O_RDONLY|O_TRUNC: the kernel has the file truncated before it looks whether it may",
);

/// Seeds of fsx, and the operations of each.
const FSX: (u32, u32) = (2, 1500);

/// The file is twice as long as what is cached of it, and goes up in parts.
const FSX_OPTIONS: &str = "cache_memory=8MiB,part_size=5MiB,upload_delay=10ms";
const LONG_FSX_OPTIONS: &str =
    "cache_memory=8MiB,part_size=5MiB,upload_delay=10ms,durability=local";

/// The seeds of the long form. `BUCKETVOL_FSX` asks for it and says of how many operations: 100 000.
const LONG_FSX_SEEDS: u32 = 5;

/// Where the program is, if it was built.
fn tool(name: &str, version: &str) -> Option<PathBuf> {
    let program = built(name, version);
    if program.exists() {
        return Some(program);
    }
    cannot_run(&format!("{name} is not built (scripts/posix-tools.sh)"));
    None
}

/// The outcome of each of pjdfstest's cases: a line each, in colours.
fn outcomes(run: &Output) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(&run.stdout);
    let plain = text.replace("\u{1b}[0m", "");
    let words = plain.lines().filter_map(|line| {
        let (case, outcome) = line.split_once(' ')?;
        let outcome = outcome.trim().rsplit('m').next()?;
        let is_outcome = matches!(outcome, "ok" | "FAILED" | "skipped");
        (case.contains("::") && is_outcome).then(|| (case.to_owned(), outcome.to_owned()))
    });
    words.collect()
}

#[test]
fn every_case_of_pjdfstest_passes_in_a_directory() {
    let directory = tempfile::tempdir_in(scratch()).expect("a directory");
    let mounted = Mounted::of_directory(directory.path());
    run_pjdfstest(mounted, &[]);
}

#[test]
fn every_case_of_pjdfstest_passes_on_s3_but_for_those_with_a_reason() {
    let server = LocalS3::start();
    let mounted = Mounted::by_root(server.account(), "");
    run_pjdfstest(mounted, &ON_S3);
}

fn run_pjdfstest(mut mounted: Mounted, expected: &[(&str, &str)]) {
    let Some(pjdfstest) = tool("pjdfstest", "0.2.2") else {
        return;
    };
    let other = tempfile::tempdir_in("/dev/shm").expect("another file system");
    // The whole path of a socket has to fit in 108 bytes.
    let mut short = tempfile::Builder::new();
    let short = short.permissions(fs::Permissions::from_mode(0o755));
    let short = short.tempdir_in("/tmp").expect("a directory");
    symlink(mounted.path(""), short.path().join("mnt")).expect("a link to the mount");
    let configuration = configuration(&format!(
        "[features]\nposix_fallocate = {{}}\nutimensat = {{}}\nutime_now = {{}}\n\
         [settings]\nnaptime = 0.01\nallow_remount = false\n\
         [dummy_auth]\nentries = {USERS}\n"
    ));
    let run = output(
        bounded(300, pjdfstest)
            .arg("--configuration-file")
            .arg(configuration.path())
            .arg("--path")
            .arg(short.path().join("mnt"))
            .arg("--secondary-fs")
            .arg(other.path()),
    );
    let outcomes = outcomes(&run);
    let count = |wanted: &str| {
        outcomes
            .values()
            .filter(|outcome| *outcome == wanted)
            .count()
    };
    let failed: Vec<&str> = outcomes
        .iter()
        .filter(|(_, outcome)| *outcome == "FAILED")
        .map(|(case, _)| case.as_str())
        .collect();
    let mut unexpected = failed.clone();
    unexpected.retain(|case| *case != SOMETIMES.0);
    for (name, why) in expected {
        let fails = failed.iter().any(|case| case.ends_with(name));
        assert!(fails, "{name} passes, though {why}");
        unexpected.retain(|case| !case.ends_with(name));
    }
    assert!(unexpected.is_empty(), "{unexpected:#?}\n{}", describe(&run));
    // Those of a read-only mount, of a rename that changes the ctime, which POSIX leaves open, and of the most links.
    assert_eq!((count("skipped"), outcomes.len()), (21, 398));
    mounted.unmount();
}

/// A program's configuration, which goes with the value.
fn configuration(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new_in(scratch()).expect("a file");
    file.write_all(text.as_bytes()).expect("a configuration");
    file
}

#[test]
fn fsx_finds_no_byte_out_of_place() {
    let Some(fsx) = tool("fsx", "0.3.2") else {
        return;
    };
    let asked = std::env::var("BUCKETVOL_FSX");
    // fsx msyncs whatever it has written through a mapping, and then the bucket gets the file. That takes most of the
    // time: in the long form it happens in the background alone.
    let ((seeds, operations), options) = match asked {
        Ok(operations) => {
            let operations = operations.parse().expect("a number");
            ((LONG_FSX_SEEDS, operations), LONG_FSX_OPTIONS)
        }
        Err(_) => (FSX, FSX_OPTIONS),
    };
    let configuration = configuration(
        "flen = 16777216\n[opsize]\nmax = 262144\n[weights]\nclose_open = 0.2\ninvalidate = 1\nfsync = 0.05\n\
         fdatasync = 0.05\nposix_fallocate = 2\npunch_hole = 5\nsendfile = 5\nposix_fadvise = 2\ncopy_file_range = 5\n",
    );
    for seed in 1..=seeds {
        let server = LocalS3::start();
        let mut mounted = Mounted::with(server.account(), options);
        exercise(
            &fsx,
            configuration.path(),
            seed,
            operations,
            &mounted.path("file"),
        );
        let bytes = fs::read(mounted.path("file")).expect("it is there");
        mounted.unmount();
        assert!(server.account().get("file").as_deref() == Some(&bytes[..]));
    }
}

fn exercise(fsx: &Path, configuration: &Path, seed: u32, operations: u32, file: &Path) {
    let run = output(
        bounded(1800, fsx)
            .args(["-S", &seed.to_string(), "-N", &operations.to_string()])
            .arg("-f")
            .arg(configuration)
            .arg(file)
            .current_dir(scratch()),
    );
    assert!(run.status.success(), "seed {seed}: {}", describe(&run));
}
