//! Databases: they sync what they promise, lock each other out, map what they share, and recover.

use std::path::{Path, PathBuf};

use crate::common::mounted::{Mounted, NOBODY};
use crate::common::process::{bounded, cannot_run, output};
use crate::common::s3::LocalS3;

use super::has;

/// `path mode name count`: so many transactions, each of which adds one to what it has read. Then the process dies in
/// one more, of which a part is in the files already.
const WRITE: &str = r#"
import os, sqlite3, sys
path, mode, name, count = *sys.argv[1:4], int(sys.argv[4])
database = sqlite3.connect(path, isolation_level=None, timeout=60)
said = database.execute("PRAGMA journal_mode").fetchone()[0]
assert said == mode, said
for number in range(count):
    database.execute("BEGIN IMMEDIATE")
    total = database.execute("SELECT value FROM total").fetchone()[0]
    database.execute("INSERT INTO rows VALUES (?, ?, ?)", (name, number, f"{number * 7919 % 65536} {name}" * 20))
    database.execute("UPDATE total SET value = ?", (total + 1,))
    database.execute("COMMIT")
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN IMMEDIATE")
database.execute("UPDATE rows SET text = 'lost' || text")
os._exit(0)
"#;

const CREATE: &str = r#"
import sqlite3, sys
path, mode = sys.argv[1:]
database = sqlite3.connect(path, isolation_level=None)
said = database.execute(f"PRAGMA journal_mode={mode}").fetchone()[0]
assert said == mode, said
database.execute("CREATE TABLE rows (name TEXT, number INTEGER, text TEXT UNIQUE, PRIMARY KEY (name, number))")
database.execute("CREATE TABLE total (value INTEGER)")
database.execute("INSERT INTO total VALUES (0)")
"#;

/// `path name=count..`: the database is whole and has these rows, all of them and no others.
const CHECK: &str = r#"
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
said = database.execute("PRAGMA integrity_check").fetchall()
assert said == [("ok",)], said
counts = {name: int(count) for name, count in (word.split("=") for word in sys.argv[2:])}
expected = [(name, number, f"{number * 7919 % 65536} {name}" * 20)
    for name in sorted(counts) for number in range(counts[name])]
rows = database.execute("SELECT name, number, text FROM rows ORDER BY name, number").fetchall()
assert rows == expected, (len(rows), len(expected))
total = database.execute("SELECT value FROM total").fetchone()[0]
assert total == len(expected), (total, len(expected))
"#;

fn sqlite_in_mode(mode: &str) {
    if !has(&["python3"]) {
        return;
    }
    let mut look = bounded(20, "python3");
    if !output(look.args(["-c", "import sqlite3"])).status.success() {
        return cannot_run("python3 has no module sqlite3");
    }
    let s3 = LocalS3::start();
    let mut mounted = Mounted::by_root(s3.account(), "");
    for (name, text) in [("create", CREATE), ("write", WRITE), ("check", CHECK)] {
        std::fs::write(mounted.local(name), text).expect("the script is written");
    }
    mounted.sh(&format!("python3 \"$LOCAL/create\" db {mode}"));
    mounted.sh(&format!("python3 \"$LOCAL/write\" db {mode} alone 100"));
    mounted.sh("python3 \"$LOCAL/check\" db alone=100");
    let both = format!(
        "python3 \"$LOCAL/write\" db {mode} left 80 & left=$!
         python3 \"$LOCAL/write\" db {mode} right 80 & right=$!
         wait $left; wait $right"
    );
    mounted.sh(&both);
    // What the dead have left of a journal comes back from the bucket, and is played.
    mounted.remount();
    let check = "python3 \"$LOCAL/check\" db alone=100 left=80 right=80";
    mounted.sh(check);
    mounted.sh(&format!("python3 \"$LOCAL/write\" db {mode} again 20"));
    mounted.remount();
    let vacuum = "python3 -c 'import sqlite3; sqlite3.connect(\"db\").execute(\"VACUUM\")'";
    mounted.sh(&format!("{check} again=20; {vacuum}"));
    mounted.remount();
    mounted.sh(&format!("{check} again=20"));
    assert_eq!(
        mounted.sh("ls -A"),
        "db",
        "its journal goes with the last that closes it"
    );
}

#[test]
fn sqlite_with_a_rollback_journal_keeps_every_transaction_of_two_processes() {
    sqlite_in_mode("delete");
}

#[test]
fn sqlite_with_a_write_ahead_log_in_shared_memory_keeps_every_transaction_of_two_processes() {
    sqlite_in_mode("wal");
}

/// Where PostgreSQL's server is: Debian has it beside `PATH`, by version.
fn postgres() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let mut places: Vec<PathBuf> = versions
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    places.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&path));
    let programs = [
        "initdb",
        "pg_ctl",
        "pgbench",
        "psql",
        "pg_amcheck",
        "pg_checksums",
    ];
    let is_whole = |place: &PathBuf| programs.iter().all(|program| place.join(program).exists());
    places.into_iter().rfind(is_whole)
}

/// A server on the mount, as `nobody`: it does not run as root. It ends with the value.
struct Server<'a> {
    mounted: &'a Mounted,
    programs: &'a Path,
}

impl<'a> Server<'a> {
    fn start(mounted: &'a Mounted, programs: &'a Path) -> Self {
        let server = Self { mounted, programs };
        server.control("--timeout=60 --log=\"$LOCAL/postgres/log\" start");
        server
    }

    /// Stops it by one of PostgreSQL's modes; `immediate` is a crash.
    fn stop(self, mode: &str) {
        self.control(&format!("--mode={mode} stop"));
        std::mem::forget(self);
    }

    fn control(&self, words: &str) {
        self.run(&format!("pg_ctl --wait --pgdata=data {words} </dev/null"));
    }

    fn run(&self, script: &str) -> String {
        run(self.mounted, self.programs, script)
    }

    /// The database is whole, and has what this many transactions have left.
    fn check(&self, transactions: u32) {
        let of = |table: &str, column: &str| {
            format!("(SELECT sum({column}balance) FROM pgbench_{table})")
        };
        let query = format!(
            "SELECT {} = (SELECT sum(delta) FROM pgbench_history), {} = {}, (SELECT count(*) FROM pgbench_history),
                (SELECT count(*) FROM pgbench_accounts)",
            of("accounts", "a"),
            of("branches", "b"),
            of("tellers", "t"),
        );
        let said = self.run(&format!("psql -X -A -t -c \"{query}\" postgres"));
        assert_eq!(said, format!("t|t|{transactions}|100000"));
        self.run("pg_amcheck --install-missing --heapallindexed --parent-check postgres");
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let stop = "pg_ctl --pgdata=data --mode=immediate stop";
        let path = format!("PATH='{}':$PATH", self.programs.display());
        // The test has failed already.
        self.mounted.sh_fails(NOBODY, &format!("{path}; {stop}"));
    }
}

/// A script with PostgreSQL's programs at hand.
fn run(mounted: &Mounted, programs: &Path, script: &str) -> String {
    let settings = format!(
        "export PATH='{}':\"$PATH\" PGHOST=\"$LOCAL/postgres\" PGUSER=postgres",
        programs.display()
    );
    mounted.sh_as(NOBODY, &format!("{settings}\n{script}"))
}

#[test]
fn postgresql_recovers_from_a_crash_and_from_a_remount_with_every_transaction() {
    let Some(programs) = postgres() else {
        return cannot_run("PostgreSQL's server and its pgbench are not installed");
    };
    let s3 = LocalS3::start();
    let mut mounted = Mounted::by_root(s3.account(), "");
    mounted.sh("mkdir \"$LOCAL/postgres\" data; chown 65534:65534 \"$LOCAL/postgres\" data");
    run(
        &mounted,
        &programs,
        "initdb --pgdata=data --auth=trust --username=postgres --encoding=UTF8 --locale=C --data-checksums \
             --wal-segsize=1 >\"$LOCAL/postgres/initdb\"
         printf \"listen_addresses = ''\nunix_socket_directories = '%s/postgres'\n\" \"$LOCAL\" >>data/postgresql.conf
         printf 'max_wal_size = 8MB\nmin_wal_size = 2MB\n' >>data/postgresql.conf",
    );
    let server = Server::start(&mounted, &programs);
    server.run("pgbench --initialize --scale=1 --quiet postgres 2>&1");
    // The one row of pgbench_branches lets them through one by one; without it they commit together.
    server.run(
        "pgbench --no-vacuum --client=4 --transactions=10 postgres 2>&1
        pgbench --no-vacuum --builtin=simple-update --client=8 --transactions=40 postgres 2>&1",
    );
    server.stop("immediate");
    let server = Server::start(&mounted, &programs);
    server.check(360);
    server.run(
        "pgbench --no-vacuum --builtin=simple-update --client=8 --transactions=10 postgres 2>&1",
    );
    server.stop("fast");

    mounted.remount();
    run(&mounted, &programs, "pg_checksums --check --pgdata=data");
    let server = Server::start(&mounted, &programs);
    server.check(440);
    // A crash of the server, and of the mount right after it.
    server.run(
        "pgbench --no-vacuum --builtin=simple-update --client=8 --transactions=10 postgres 2>&1",
    );
    server.stop("immediate");
    mounted.remount();
    let server = Server::start(&mounted, &programs);
    server.check(520);
    server.stop("fast");
    let bad = "PANIC|could not|invalid page|corrupt";
    run(
        &mounted,
        &programs,
        &format!("! grep -E '{bad}' \"$LOCAL/postgres/log\""),
    );
}
