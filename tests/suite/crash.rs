//! The program is killed at random while programs write: what they were told is written is there when it is
//! mounted again, and in the end it is in the bucket.
//!
//! Needs root, /dev/fuse and python3.

mod sqlite;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::sqlite::Inserter;
use crate::common::mounted::Mounted;
use crate::common::s3::LocalS3;

/// `BUCKETVOL_KILLS` asks for more: the long form is 500.
const KILLS: u32 = 20;

/// One page of the file that is written all over.
const PAGE: usize = 4096;

/// Pages of that file.
const PAGES: u64 = 64;

/// What the programs were told so far.
#[derive(Debug, Default)]
struct Told {
    /// Lines appended without fsync.
    lines: u64,
    /// Lines appended with fsync.
    synced_lines: u64,
    /// The version that was last renamed into place.
    version: u64,
    /// The version of each page.
    pages: Vec<u64>,
    /// Rows committed to the database.
    rows: u64,
}

/// Of 16 bytes: the kernel may send a write that crosses a page's end as two.
fn line(number: u64) -> String {
    format!("line {number:010}\n")
}

fn document(version: u64) -> Vec<u8> {
    let len = 1000 + usize::try_from(version % 97).expect("small") * 1000;
    let mut bytes = version.to_le_bytes().to_vec();
    bytes.resize(len, u8::try_from(version % 251).expect("below 251"));
    bytes
}

fn page(version: u64) -> [u8; PAGE] {
    let mut page = [u8::try_from(version % 251).expect("below 251"); PAGE];
    page[..8].copy_from_slice(&version.to_le_bytes());
    page
}

/// Appends lines until the mount is gone; returns how many writes (and fsyncs) came back.
fn append(path: &Path, mut done: u64, sync: bool) -> u64 {
    let mut append = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        for _ in 0..1_000_000 {
            file.write_all(line(done).as_bytes())?;
            if sync {
                file.sync_data()?;
            }
            done += 1;
        }
        Ok(())
    };
    let _ = append();
    done
}

/// Writes each version beside the document and renames it into place, until the mount is gone.
fn replace(directory: &Path, mut version: u64) -> u64 {
    let mut replace = || -> io::Result<()> {
        for _ in 0..1_000_000 {
            let next = version + 1;
            fs::write(directory.join("document.tmp"), document(next))?;
            fs::rename(directory.join("document.tmp"), directory.join("document"))?;
            version = next;
        }
        Ok(())
    };
    let _ = replace();
    version
}

/// Writes pages anywhere until the mount is gone.
fn scribble(path: &Path, mut pages: Vec<u64>, mut random: u64) -> Vec<u64> {
    let mut scribble = || -> io::Result<()> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        for _ in 0..1_000_000 {
            let index = next(&mut random) % PAGES;
            let version = &mut pages[usize::try_from(index).expect("small")];
            file.write_all_at(&page(*version + 1), index * PAGE as u64)?;
            *version += 1;
            if next(&mut random).is_multiple_of(50) {
                file.sync_all()?;
            }
        }
        Ok(())
    };
    let _ = scribble();
    pages
}

fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

/// Each file is as its program was told, or one step further: the last step's answer may not have come.
fn check(directory: &Path, told: &mut Told) {
    for (name, done) in [
        ("lines", &mut told.lines),
        ("synced", &mut told.synced_lines),
    ] {
        let text = fs::read_to_string(directory.join(name)).unwrap_or_default();
        let found = text.lines().count() as u64;
        let expected: String = (0..found).map(line).collect();
        assert!(text == expected, "{name} has other lines than were written");
        assert!(
            (*done..=*done + 1).contains(&found),
            "{name} has {found} lines of {done}"
        );
        *done = found;
    }
    match fs::read(directory.join("document")) {
        Ok(found) => {
            let version = u64::from_le_bytes(found[..8].try_into().expect("8 bytes"));
            assert!(found == document(version), "the document is a mixture");
            assert!((told.version..=told.version + 1).contains(&version));
            told.version = version;
        }
        Err(error) => assert_eq!(told.version, 0, "{error}"),
    }
    if let Ok(file) = File::open(directory.join("pages")) {
        for (index, version) in (0_u64..).zip(&mut told.pages) {
            let mut found = [0; PAGE];
            let _ = file.read_at(&mut found, index * PAGE as u64).expect("read");
            let was = u64::from_le_bytes(found[..8].try_into().expect("8 bytes"));
            assert!(was == 0 || found == page(was), "page {index} is a mixture");
            assert!(
                (*version..=*version + 1).contains(&was),
                "page {index} is {was} of {version}"
            );
            *version = was;
        }
    }
    let rows = sqlite::rows(&directory.join("database"));
    assert!(
        (told.rows..=told.rows + 1).contains(&rows),
        "the database has {rows} rows of {}",
        told.rows
    );
    told.rows = rows;
}

fn crash(kills: u32) {
    let server = LocalS3::start();
    let account = server.account();
    let mut mounted = Mounted::by_root(account, "");
    let mut told = Told {
        pages: vec![0; usize::try_from(PAGES).expect("small")],
        ..Told::default()
    };
    let seed = u64::from(std::process::id()) | 1 << 32;
    let mut random = seed;
    for kill in 0..kills {
        let at = |name: &str| -> PathBuf { mounted.path(name) };
        let (lines, synced, pages) = (at("lines"), at("synced"), at("pages"));
        let directory = at("");
        let pages_so_far = told.pages.clone();
        let pause = Duration::from_millis(next(&mut random) % 400);
        let scribbler_seed = next(&mut random);
        let (lines_done, synced_done, version) = (told.lines, told.synced_lines, told.version);
        let inserter = Inserter::start(&at("database"), told.rows);
        let programs = (
            std::thread::spawn(move || append(&lines, lines_done, false)),
            std::thread::spawn(move || append(&synced, synced_done, true)),
            std::thread::spawn(move || replace(&directory, version)),
            std::thread::spawn(move || scribble(&pages, pages_so_far, scribbler_seed)),
            std::thread::spawn(move || inserter.insert()),
        );
        std::thread::sleep(pause);
        mounted.kill();
        told = Told {
            lines: programs.0.join().expect("no panic"),
            synced_lines: programs.1.join().expect("no panic"),
            version: programs.2.join().expect("no panic"),
            pages: programs.3.join().expect("no panic"),
            rows: programs.4.join().expect("no panic"),
        };
        mounted.mount_after_kill();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            check(&mounted.path(""), &mut told);
        }));
        if let Err(panic) = result {
            print_seed(seed, kill);
            std::panic::resume_unwind(panic);
        }
    }
    assert!(told.rows > 0, "SQLite never came to commit anything");
    let names = [
        "lines",
        "synced",
        "document",
        "pages",
        "database",
        // SQLite leaves one that it had not begun to use.
        "database-journal",
    ];
    let seen: Vec<Vec<u8>> = names
        .iter()
        .map(|name| fs::read(mounted.path(name)).unwrap_or_default())
        .collect();
    mounted.unmount();
    for (name, seen) in names.iter().zip(seen) {
        assert!(
            account.get(name).unwrap_or_default() == seen,
            "{name} in the bucket is not what was seen"
        );
    }
}

#[expect(clippy::print_stdout, reason = "shown when the test fails")]
fn print_seed(seed: u64, kill: u32) {
    println!("seed {seed}, after kill {kill}");
}

#[test]
fn what_was_written_is_there_after_every_kill() {
    let kills = std::env::var("BUCKETVOL_KILLS");
    crash(kills.map_or(KILLS, |kills| kills.parse().expect("a number")));
}
