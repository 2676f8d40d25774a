//! What POSIX says of files, tested by programs that others wrote for that: `scripts/posix-tools.sh` builds them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;

use tempfile::NamedTempFile;

use crate::common::mounted::Mounted;
use crate::common::process::{bounded, cannot_run, describe, output};
use crate::common::s3::{LocalS3, scratch};
use crate::common::tools::built;

/// Two users that every Debian has, and each one's group.
const USERS: &str = r#"[["nobody", "nogroup"], ["daemon", "daemon"]]"#;

/// Cases that fail, by the beginning of their names, and why.
const EXPECTED_FAILURES: [(&str, &str); 5] = [
    ("link::", "there are no hard links yet"),
    (
        "unlink::unchanged_ctime_failed",
        "there are no hard links yet",
    ),
    (
        "unlink::update_ctime_success",
        "there are no hard links yet",
    ),
    ("rename::preserve_metadata", "there are no hard links yet"),
    ("rename::to_multiply_linked", "there are no hard links yet"),
];

/// Operations of fsx that one run does: `BUCKETVOL_FSX` asks for more, the long form is 100 000.
const FSX_OPERATIONS: u32 = 1500;
const FSX_SEEDS: u32 = 5;

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
fn every_case_of_pjdfstest_passes_but_for_those_with_a_reason() {
    let Some(pjdfstest) = tool("pjdfstest", "0.2.2") else {
        return;
    };
    let server = LocalS3::start();
    let mut mounted = Mounted::by_root(server.account(), "");
    let other = tempfile::tempdir_in("/dev/shm").expect("another file system");
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
            .arg(mounted.path(""))
            .arg("--secondary-fs")
            .arg(other.path()),
    );
    let outcomes = outcomes(&run);
    let of = |wanted: &str| -> BTreeSet<&str> {
        let those = outcomes.iter().filter(|(_, outcome)| *outcome == wanted);
        those.map(|(case, _)| case.as_str()).collect()
    };
    let reason = |case: &&str| {
        let mut reasons = EXPECTED_FAILURES.iter();
        reasons.any(|(beginning, _)| case.starts_with(beginning))
    };
    let (failed, passed) = (of("FAILED"), of("ok"));
    let unexpected: Vec<_> = failed.iter().filter(|case| !reason(case)).collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}\n{}", describe(&run));
    for (beginning, why) in EXPECTED_FAILURES {
        let fails = failed.iter().any(|case| case.starts_with(beginning));
        assert!(fails, "{beginning} passes, though {why}");
    }
    // Those of a read-only mount, of a rename that changes the ctime, which POSIX leaves open, and of the most links.
    assert_eq!(of("skipped").len(), 21);
    assert_eq!(passed.len() + failed.len() + 21, 398);
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
    let operations = std::env::var("BUCKETVOL_FSX");
    let operations = operations.map_or(FSX_OPERATIONS, |n| n.parse().expect("a number"));
    let configuration = configuration(
        "flen = 16777216\n[opsize]\nmax = 262144\n[weights]\nclose_open = 1\ninvalidate = 1\nfsync = 0.2\n\
         fdatasync = 0.2\nposix_fallocate = 2\npunch_hole = 5\nsendfile = 5\nposix_fadvise = 2\ncopy_file_range = 5\n",
    );
    for seed in 1..=FSX_SEEDS {
        let server = LocalS3::start();
        // The file is twice as long as what is cached of it, and goes up in parts.
        let options = "cache_memory=8MiB,part_size=5MiB,upload_delay=10ms";
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
        bounded(1200, fsx)
            .args(["-S", &seed.to_string(), "-N", &operations.to_string()])
            .arg("-f")
            .arg(configuration)
            .arg(file)
            .current_dir(scratch()),
    );
    assert!(run.status.success(), "seed {seed}: {}", describe(&run));
}
