//! SQLite on the mount, driven by python3: a rollback journal, every transaction synced, one row each.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::common::process::{bounded, succeed};

/// Says `ready`, waits for a line, then inserts rows and says the number of each whose commit came back, until
/// the database fails.
const INSERT: &str = r#"
import sqlite3, sys
print("ready", flush=True)
sys.stdin.readline()
number = int(sys.argv[2])
try:
    database = sqlite3.connect(sys.argv[1], isolation_level=None)
    database.execute("PRAGMA journal_mode=DELETE")
    database.execute("PRAGMA synchronous=FULL")
    # Two trees: a transaction changes several pages.
    database.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, text TEXT UNIQUE)")
    while True:
        number += 1
        database.execute("INSERT INTO rows VALUES (?, ?)", (number, f"{number * 7919 % 65536:05} {number}"))
        print(number, flush=True)
except sqlite3.Error as error:
    print(error, file=sys.stderr)
"#;

/// Says how many rows there are, if the database is whole and has those it should have.
const CHECK: &str = r#"
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
said = database.execute("PRAGMA integrity_check").fetchall()
assert said == [("ok",)], said
rows = []
if database.execute("SELECT name FROM sqlite_master WHERE name = 'rows'").fetchall():
    rows = database.execute("SELECT number, text FROM rows ORDER BY number").fetchall()
expected = [(number, f"{number * 7919 % 65536:05} {number}") for number in range(1, len(rows) + 1)]
assert rows == expected, rows
print(len(rows))
"#;

/// A process that is about to insert rows.
#[derive(Debug)]
pub(super) struct Inserter {
    process: Child,
    go: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
    done: u64,
}

impl Inserter {
    /// Starts the process; `done` rows are there.
    pub(super) fn start(database: &Path, done: u64) -> Self {
        let mut process = Command::new("python3")
            .args(["-c", INSERT])
            .arg(database)
            .arg(done.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs python3, which is not there");
        let go = process.stdin.take().expect("it is piped");
        let said = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut said = said.lines();
        let ready = said.next().and_then(Result::ok);
        assert!(
            ready.as_deref() == Some("ready"),
            "this test needs python3 with its module sqlite3"
        );
        Self {
            process,
            go,
            said,
            done,
        }
    }

    /// Inserts rows until the mount is gone; returns the last one whose commit came back.
    pub(super) fn insert(mut self) -> u64 {
        self.go.write_all(b"\n").expect("it waits for a line");
        for line in self.said.map_while(Result::ok) {
            self.done = line.parse().expect("a number");
        }
        self.process.wait().expect("it ends with its output");
        self.done
    }
}

/// Rows of the database, which has to be whole.
pub(super) fn rows(database: &Path) -> u64 {
    let mut check = bounded(60, "python3");
    let rows = succeed(check.args(["-c", CHECK]).arg(database));
    rows.parse().expect("a number")
}
