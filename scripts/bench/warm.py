#!/usr/bin/env python3
"""How fast bucketvol answers what it knows already, beside the least that a FUSE file system can do:
warm.py BUCKETVOL CEILING DIR.

Prints one JSON object. DIR holds the bucket (a directory), the mount and its state.
"""

import json
import mmap
import os
import random
import subprocess
import sys
import time

MIB = 1 << 20
# It fits into the block cache beside everything else.
SIZE = 96 * MIB
READS, ENTRIES, ROUNDS = 20_000, 20_000, 5
# Nobody waits longer for anything.
LIMIT = 60


def main():
    bucketvol, ceiling, work = sys.argv[1:]
    bucket = f"{work}/bucket"
    os.makedirs(f"{bucket}/directory")
    with open(f"{bucket}/large", "wb") as file:
        file.write(random.randbytes(SIZE))
    for number in range(ENTRIES):
        os.close(os.open(f"{bucket}/directory/{number:05}", os.O_CREAT | os.O_WRONLY))
    options = f"state_dir={work}/state,cache_dir={work}/cache,metadata_ttl=1h,min_free=64MiB"
    mounts = {name: f"{work}/{name}" for name in ("bucketvol", "ceiling")}
    commands = {
        "bucketvol": [bucketvol, "mount", f"file://{bucket}", mounts["bucketvol"], "-o", options],
        "ceiling": [ceiling, mounts["ceiling"], "--bytes", str(SIZE)],
    }
    running = []
    try:
        for name, mnt in mounts.items():
            os.makedirs(mnt)
            running.append((start(commands[name], mnt), mnt))
            read_in_order(f"{mnt}/large")
        # In turns: the machine is not the same from one second to the next.
        rounds = [{name: measure(mnt) for name, mnt in mounts.items()} for _ in range(ROUNDS)]
        answer = {
            what: {name: max(one[name][what] for one in rounds) for name in mounts} for what in ("sequential", "random")
        }
        answer["find"] = [ENTRIES / find(f"{mounts['bucketvol']}/directory") for _ in range(ROUNDS)]
        print(json.dumps(answer))
    finally:
        for program, mnt in running:
            end(program, mnt)


def measure(mnt):
    in_order, at_random = read_in_order(f"{mnt}/large"), read_at_random(f"{mnt}/large")
    return {"sequential": SIZE / MIB / in_order, "random": READS / at_random}


def start(command, mnt):
    environment = dict(os.environ, BUCKETVOL_NO_KEEPER="1")
    program = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    for _ in range(LIMIT * 10):
        if os.path.ismount(mnt):
            # What one has of the kernel's readahead the other has too.
            device = os.stat(mnt).st_dev
            with open(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb", "w") as ahead:
                ahead.write("1024")
            return program
        time.sleep(0.1)
    raise OSError(f"{command[0]} does not mount")


def end(program, mnt):
    subprocess.run(["umount", mnt], check=False, timeout=LIMIT)
    program.wait(LIMIT)


def read_in_order(path):
    """Seconds to read a file of which the kernel has no page."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    buffer = bytearray(MIB)
    begun = time.perf_counter()
    while os.readv(file, [buffer]):
        pass
    seconds = time.perf_counter() - begun
    os.close(file)
    return seconds


def read_at_random(path):
    """Seconds for reads of 4 KiB past the kernel's cache."""
    chance = random.Random(3)
    offsets = [chance.randrange(SIZE // 4096) * 4096 for _ in range(READS)]
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    begun = time.perf_counter()
    for offset in offsets:
        os.preadv(file, [page], offset)
    seconds = time.perf_counter() - begun
    os.close(file)
    return seconds


def find(path):
    begun = time.perf_counter()
    subprocess.run(["find", path], check=True, stdout=subprocess.DEVNULL, timeout=LIMIT)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
