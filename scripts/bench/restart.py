#!/usr/bin/env python3
"""How long programs wait when the worker of a mount goes that knows a million inodes: restart.py BUCKETVOL DIR.

Prints one JSON object. DIR holds the bucket (a directory of empty files), the mount and its state; it takes some 5 GB
for as long as this runs.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time

DIRECTORIES, FILES, OPEN, ROUNDS = 1000, 1000, 10_000, 3
# Nobody waits longer for anything.
LIMIT = 120


def main():
    bucketvol, work = sys.argv[1:]
    bucket, mnt = f"{work}/bucket", f"{work}/mnt"
    os.makedirs(mnt)
    fill(bucket)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # The names stay known: it is all of them that come back.
    options = f"state_dir={work}/state,metadata_ttl=1h,min_free=64MiB"
    command = [bucketvol, "mount", "--background", f"file://{bucket}", mnt, "-o", options]
    subprocess.run(command, check=True, timeout=LIMIT, stdout=sys.stderr)
    try:
        print(json.dumps(measure(bucketvol, mnt)))
    finally:
        subprocess.run(["umount", mnt], check=False, timeout=LIMIT)


def fill(bucket):
    for directory in range(DIRECTORIES):
        os.makedirs(f"{bucket}/{directory:04}")
        for file in range(FILES):
            os.close(os.open(f"{bucket}/{directory:04}/{file:04}", os.O_CREAT | os.O_WRONLY))


def measure(bucketvol, mnt):
    inodes = sum(1 for entry in os.scandir(mnt) for file in os.scandir(entry.path) if file.stat().st_ino)
    names = [f"{mnt}/{number % DIRECTORIES:04}/{number // DIRECTORIES:04}" for number in range(OPEN)]
    held = [os.open(name, os.O_RDONLY) for name in names]
    before = [os.fstat(file).st_ino for file in held]
    worker, keeper = processes(bucketvol, mnt)
    answer = {"inodes": inodes, "open": len(held), "resident": resident(worker), "kept": kept(keeper)}
    answer["kill"] = [longest_wait(mnt, lambda: kill(bucketvol, mnt)) for _ in range(ROUNDS)]
    answer["restart"] = [longest_wait(mnt, lambda: restart(bucketvol, mnt)) for _ in range(ROUNDS)]
    answer["same"] = [os.fstat(file).st_ino for file in held] == before
    for file in held:
        os.close(file)
    return answer


def longest_wait(mnt, change):
    """The longest that anybody waited for an answer of the process, which no cache gives, while it was replaced."""
    waits, over = [], threading.Event()

    def ask():
        while not over.is_set():
            begun = time.monotonic()
            os.statvfs(mnt)
            waits.append(time.monotonic() - begun)
            time.sleep(0.005)

    asker = threading.Thread(target=ask)
    asker.start()
    change()
    # A worker that was killed is replaced by now, or somebody waits for the next.
    time.sleep(5)
    over.set()
    asker.join(LIMIT)
    return max(waits)


def kill(bucketvol, mnt):
    os.kill(processes(bucketvol, mnt)[0], signal.SIGKILL)


def restart(bucketvol, mnt):
    subprocess.run([bucketvol, "restart", mnt], check=True, timeout=LIMIT, stdout=sys.stderr)


def processes(bucketvol, mnt):
    """The worker and the keeper of the mount."""
    status = json.loads(subprocess.check_output([bucketvol, "status", "--json"], timeout=LIMIT))
    found = (one for one in status if any(mount["mountpoint"] == mnt for mount in one["mounts"]))
    worker = next(found)
    return worker["pid"], worker["keeper"]["pid"]


def kept(keeper):
    """Bytes of the shared memory that the keeper has for the next worker."""
    files = (f"/proc/{keeper}/fd/{name}" for name in os.listdir(f"/proc/{keeper}/fd"))
    return sum(os.stat(file).st_size for file in files if os.readlink(file).startswith("/memfd:"))


def resident(pid):
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    main()
