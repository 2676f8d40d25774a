"""Workloads of scripts/bench.sh that read. Every mount is new: what they read was never read before."""

import os
import random
import subprocess

GIB = 1 << 30
MIB = 1 << 20


class Reading:
    """Nothing has to follow in the bucket."""

    def stored(self, _store):
        return True


class Sequential(Reading):
    """One object of 1 GiB, from its beginning to its end, by dd."""

    def prepare(self, directory, store):
        put_random(store, directory, "large", GIB)

    def work(self, _directory, mnt):
        read_all(f"{mnt}/large").check_returncode()


class Streams(Reading):
    """Four objects of 256 MiB, each by a dd of its own, at once."""

    def prepare(self, directory, store):
        for number in range(4):
            put_random(store, directory, f"part-{number}", GIB // 4)

    def work(self, _directory, mnt):
        readers = [
            subprocess.Popen(["dd", f"if={mnt}/part-{n}", "of=/dev/null", "bs=1M", "status=none"]) for n in range(4)
        ]
        if any([reader.wait() for reader in readers]):
            raise OSError("dd has failed")


class Random(Reading):
    """Reads at random places of an object of 1 GiB, one after the other."""

    count, size = 100, 256 * 1024

    def prepare(self, directory, store):
        put_random(store, directory, "large", GIB)

    def work(self, _directory, mnt):
        chance = random.Random(7)
        file = os.open(f"{mnt}/large", os.O_RDONLY)
        for _ in range(self.count):
            offset = chance.randrange(GIB // self.size) * self.size
            if len(os.pread(file, self.size, offset)) != self.size:
                raise OSError(f"short read at {offset}")
        os.close(file)


class Random4k(Random):
    """Likewise, of 4 KiB each."""

    count, size = 200, 4096


class Readsmall(Reading):
    """300 files of 16 KiB in one directory, each opened, read and closed."""

    count, size = 300, 16 * 1024

    def prepare(self, _directory, store):
        chance = random.Random(11)
        store.fill({f"file-{number}": chance.randbytes(self.size) for number in range(self.count)})

    def work(self, _directory, mnt):
        for number in range(self.count):
            with open(f"{mnt}/file-{number}", "rb", buffering=0) as file:
                if len(file.read()) != self.size:
                    raise OSError(f"file-{number} is short")


class First(Readsmall):
    """The first byte of each of 50 objects of 8 MiB, when their directory has been listed."""

    count, size = 50, 8 * MIB

    def prepare(self, _directory, store):
        body = random.Random(13).randbytes(self.size)
        store.fill({f"file-{number}": body for number in range(self.count)})

    def before(self, mnt):
        with os.scandir(mnt) as entries:
            assert sum(entry.stat().st_size for entry in entries) == self.count * self.size

    def work(self, _directory, mnt):
        for number in range(self.count):
            file = os.open(f"{mnt}/file-{number}", os.O_RDONLY)
            assert len(os.pread(file, 1, 0)) == 1
            os.close(file)


class Listing(Reading):
    """`ls -l` of a directory of 10 000 objects."""

    count = 10_000

    def prepare(self, _directory, store):
        store.fill({f"directory/{number:05}": b"%d" % number for number in range(self.count)})

    def work(self, _directory, mnt):
        listed = subprocess.run(["ls", "-l", f"{mnt}/directory"], check=True, capture_output=True)
        if listed.stdout.count(b"\n") != self.count + 1:
            raise OSError("not all of them")


def read_all(path):
    return subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"], stdin=subprocess.DEVNULL)


def put_random(store, directory, key, size):
    """An object of the beginning of the random file."""
    with open(random_file(directory), "rb") as source:
        store.put(key, LimitedFile(source, size), size)


def random_file(directory):
    """The path of 1 GiB that no store can make smaller."""
    path = f"{directory}/source"
    if not os.path.exists(path):
        with open(path, "wb") as file:
            for _ in range(GIB // MIB):
                file.write(random.randbytes(MIB))
    return path


class LimitedFile:
    """The first bytes of a file, for http.client."""

    def __init__(self, file, size):
        self.file, self.left = file, size

    def read(self, size=-1):
        size = self.left if size < 0 else min(size, self.left)
        body = self.file.read(size)
        self.left -= len(body)
        return body


WORKLOADS = {w.__name__.lower(): w for w in (Sequential, Streams, Random, Random4k, Readsmall, First, Listing)}
