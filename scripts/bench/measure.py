#!/usr/bin/env python3
"""One workload of scripts/bench.sh, which says in its environment where the bucket is.

  measure.py prepare WORKLOAD DIR              fills the bucket, past what is measured, and makes DIR's inputs
  measure.py run WORKLOAD DIR MOUNTPOINT [BUCKETVOL]
                                               prints one JSON object: seconds until the program was answered,
                                               seconds until the bucket had it all, and requests by verb where
                                               BUCKETVOL's status can be asked for them
"""

import io
import json
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import tarfile
import time

import reading
from store import Store, wait_until

GIB = 1 << 30
# No program gets longer for a workload, and the bucket no longer to follow.
LIMIT = 120


class Large:
    """One file of 1 GiB, written from its beginning to its end by dd, and closed."""

    def prepare(self, directory, _store):
        reading.random_file(directory)

    def work(self, directory, mnt):
        run("dd", f"if={directory}/source", f"of={mnt}/large", "bs=1M", "status=none")

    def stored(self, store):
        return store.size("large") == GIB


class Small:
    """500 files of 4 KiB in one directory, each created, written and closed."""

    count, size = 500, 4096

    def work(self, _directory, mnt):
        body = bytes(range(256)) * (self.size // 256)
        for number in range(self.count):
            with open(f"{mnt}/file-{number}", "wb", buffering=0) as file:
                file.write(body)

    def stored(self, store):
        return list(store.sizes("file-").values()) == [self.size] * self.count


class Replace:
    """100 times: write a temporary file, rename it over the target."""

    count = 100

    def body(self, number):
        return f"{number:4}".encode() * 1024

    def work(self, _directory, mnt):
        for number in range(self.count):
            with open(f"{mnt}/target.new", "wb", buffering=0) as file:
                file.write(self.body(number))
            os.rename(f"{mnt}/target.new", f"{mnt}/target")

    def stored(self, store):
        return store.read("target") == self.body(self.count - 1)

    def left(self, store):
        """What should be gone by now."""
        return [key for key in store.sizes("target") if key != "target"]


class Rename:
    """A directory of 10 000 objects gets another name, by mv."""

    count = 10_000

    def prepare(self, _directory, store):
        store.fill({f"from/{number:05}": b"%d" % number for number in range(self.count)})

    def work(self, _directory, mnt):
        run("mv", f"{mnt}/from", f"{mnt}/to")

    def stored(self, store):
        return not files(store.sizes("from/")) and len(files(store.sizes("to/"))) == self.count


class Patch:
    """Ten writes of 4 KiB somewhere in an object of 1 GiB, then fsync and close."""

    def __init__(self):
        chance = random.Random(5)
        self.patches = [(chance.randrange(GIB // 4096) * 4096, chance.randbytes(4096)) for _ in range(10)]

    def prepare(self, directory, store):
        reading.put_random(store, directory, "large", GIB)

    def work(self, _directory, mnt):
        file = os.open(f"{mnt}/large", os.O_RDWR)
        for offset, body in self.patches:
            os.pwrite(file, body, offset)
        os.fsync(file)
        os.close(file)

    def stored(self, store):
        return all(store.read("large", offset, len(body)) == body for offset, body in self.patches)


class Untar:
    """tar unpacks 300 files in 40 directories, 5 MB together."""

    def prepare(self, directory, _store):
        with tarfile.open(f"{directory}/tree.tar", "w") as tar:
            for name, body in tree():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime = len(body), 1_700_000_000
                tar.addfile(entry, io.BytesIO(body))

    def work(self, directory, mnt):
        run("tar", "-C", mnt, "--no-same-owner", "-xf", f"{directory}/tree.tar")

    def stored(self, store):
        return len(files(store.sizes("tree/"))) == 300


class Clone:
    """git clones a repository of those files, of one commit."""

    def prepare(self, directory, _store):
        for name, body in tree():
            path = f"{directory}/repository/{name}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(body)
        git = ["git", "-C", f"{directory}/repository", "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        run(*git, "init", "--quiet")
        run(*git, "add", ".")
        run(*git, "commit", "--quiet", "--message", "the tree")

    def work(self, directory, mnt):
        run("git", "clone", "--quiet", f"file://{directory}/repository", f"{mnt}/clone")

    def stored(self, store):
        return len(files(store.sizes("clone/tree/"))) == 300


class Sqlite:
    """200 rows into SQLite, a transaction each, journal_mode=DELETE."""

    def work(self, _directory, mnt):
        database = sqlite3.connect(f"{mnt}/rows.db", isolation_level=None)
        database.execute("PRAGMA journal_mode=DELETE")
        database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, words TEXT)")
        for number in range(200):
            database.execute("INSERT INTO rows VALUES (?, ?)", (number, "words " * 10))
        database.close()

    def stored(self, store):
        return list(store.sizes("rows.db")) == ["rows.db"]


class Append:
    """A line a second for 20 s: opened, appended to, closed."""

    def work(self, _directory, mnt):
        for number in range(20):
            with open(f"{mnt}/log", "ab", buffering=0) as file:
                file.write(b"%04d something has happened\n" % number)
            time.sleep(1)

    def stored(self, store):
        return (store.read("log") or b"").count(b"\n") == 20


class Idle:
    """Nothing for 10 s, in a mount of 100 objects that was listed before."""

    def prepare(self, _directory, store):
        store.fill({f"object-{number}": b"something" for number in range(100)})

    def before(self, mnt):
        with os.scandir(mnt) as entries:
            assert sum(entry.stat().st_size for entry in entries) == 900

    def work(self, _directory, _mnt):
        time.sleep(10)

    def stored(self, _store):
        return True


WORKLOADS = {
    workload.__name__.lower(): workload
    for workload in (Large, Small, Replace, Rename, Patch, Untar, Clone, Sqlite, Append, Idle)
} | reading.WORKLOADS


def tree():
    """300 files in 40 directories, the same every time: (name, bytes)."""
    chance = random.Random(3)
    for number in range(300):
        body = chance.randbytes(int(2 ** chance.uniform(6, 17)))
        yield f"tree/{number % 8}/{number % 40}/file-{number}", body


def files(sizes):
    """Without directories' markers."""
    return [key for key in sizes if not key.endswith("/")]


def run(*command):
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def requests(bucketvol):
    """By verb, so far; nothing for programs that do not tell."""
    if not bucketvol:
        return {}
    status = subprocess.run([bucketvol, "status", "--json"], check=True, capture_output=True, timeout=30)
    (process,) = json.loads(status.stdout)
    (mount,) = process["mounts"]
    return mount["requests"]


def processes():
    """Those that PROCESSES names: NAME=PID words."""
    return [word.split("=") for word in os.environ.get("PROCESSES", "").split()]


def peak_memory():
    """The most MiB of memory that the program has had at once."""
    for name, pid in processes():
        if name == "program":
            with open(f"/proc/{pid}/status") as file:
                (line,) = [line for line in file if line.startswith("VmHWM:")]
            return int(line.split()[1]) / 1024
    return None


def processor_seconds():
    """Spent so far by each of them."""
    tick = os.sysconf("SC_CLK_TCK")
    spent = {}
    for name, pid in processes():
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        spent[name] = (int(fields[11]) + int(fields[12])) / tick
    return spent


def work_in_child(work, answer):
    # A group of its own: dd, mv and the like are killed with it. One that hangs in the kernel holds no output open.
    os.setpgrp()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    begin = time.monotonic()
    try:
        work()
        answer.send((begin, time.monotonic(), None))
    except Exception as error:
        answer.send((begin, time.monotonic(), str(error)))


def measure(workload, directory, mnt, bucketvol):
    store = Store()
    if hasattr(workload, "before"):
        workload.before(mnt)
    before, spent = requests(bucketvol), processor_seconds()
    ours, childs = multiprocessing.Pipe()
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=work_in_child, args=(lambda: workload.work(directory, mnt), childs))
    began = time.monotonic()
    child.start()
    if not ours.poll(LIMIT):
        os.killpg(child.pid, 9)
        child.join(10)
        return {"over": LIMIT}
    begin, end, error = ours.recv()
    child.join(10)
    if error:
        return {"failed": error}
    measured = {"answered": end - begin}
    if wait_until(lambda: workload.stored(store), began + 2 * LIMIT):
        measured["stored"] = max(time.monotonic(), end) - begin
        if hasattr(workload, "left") and not wait_until(lambda: not workload.left(store), time.monotonic() + 5):
            measured["left"] = workload.left(store)
    measured["spent"] = {name: seconds - spent[name] for name, seconds in processor_seconds().items()}
    measured["peak"] = peak_memory()
    if bucketvol:
        if not isinstance(workload, Idle):
            subprocess.run([bucketvol, "sync", "--timeout", "60s", mnt], check=True, capture_output=True)
        after = requests(bucketvol)
        measured["requests"] = {k: n - before.get(k, 0) for k, n in after.items() if n > before.get(k, 0)}
    return measured


def main():
    action, name, directory, *rest = sys.argv[1:]
    workload = WORKLOADS[name]()
    if action == "prepare":
        if hasattr(workload, "prepare"):
            workload.prepare(directory, Store())
        return
    mnt, bucketvol = rest[0], rest[1] if len(rest) > 1 else None
    print(json.dumps(measure(workload, directory, mnt, bucketvol)))


if __name__ == "__main__":
    main()
