#!/usr/bin/env python3
"""docs/BENCH.md out of what scripts/bench.sh measured: report.py DIR."""

import json
import os
import sys

from chart import chart
from measure import LIMIT

PROGRAMS = ["bucketvol", "rclone", "s3fs"]

# Measured where it is installed.
SOMETIMES = "mount-s3"

# Whose fsync comes back before the store has anything: its answer is no measure of one that does not.
WITHOUT_FSYNC = "rclone"

# workload, what is asked, of which instant, amount (None: plain seconds), unit
ROWS = [
    ("large", "1 GiB in order, closed: until the bucket has it", "stored", 1024, "MiB/s"),
    ("large", "the same: until close has returned", "answered", 1024, "MiB/s"),
    ("small", "500 files of 4 KiB: until the last close has returned", "answered", 500, "files/s"),
    ("small", "the same: until the bucket has them all", "stored", 500, "files/s"),
    ("replace", "100 x (write a file, rename it over another): until answered", "answered", None, "s"),
    ("replace", "the same: until the bucket has the last one", "stored", None, "s"),
    ("rename", "`mv` of a directory of 10 000 objects: until it has returned", "answered", None, "s"),
    ("rename", "the same: until the bucket has them all under the new name", "stored", None, "s"),
    ("patch", "10 x 4 KiB into an object of 1 GiB, fsync, close: until answered (ratio: s3fs)", "answered", None, "s"),
    ("patch", "the same: until the bucket has them", "stored", None, "s"),
    ("sequential", "1 GiB read in order by `dd`", "answered", 1024, "MiB/s"),
    ("streams", "4 x 256 MiB read in order, at once", "answered", 1024, "MiB/s"),
    ("random", "256 KiB at 100 random places of 1 GiB, one after the other", "answered", 25, "MiB/s"),
    ("random4k", "4 KiB at 200 random places of 1 GiB, one after the other", "answered", 200, "reads/s"),
    ("readsmall", "300 files of 16 KiB read, one after the other", "answered", 300, "files/s"),
    ("first", "the first byte of 50 files of 8 MiB in a listed directory", "answered", 50, "files/s"),
    ("listing", "`ls -l` of 10 000 objects", "answered", None, "s"),
]

REQUESTS = [
    ("large", "1 GiB in order"),
    ("small", "500 files of 4 KiB"),
    ("replace", "100 x (write a file, rename it over another)"),
    ("rename", "`mv` of a directory of 10 000 objects"),
    ("patch", "10 x 4 KiB into an object of 1 GiB, fsync"),
    ("untar", "`tar -x` of 300 files in 40 directories, 5 MB"),
    ("clone", "`git clone` of the same, one commit"),
    ("sqlite", "200 inserts into SQLite, a transaction each (`journal_mode=DELETE`)"),
    ("append", "a line a second for 20 s: open, append, close"),
    ("idle", "nothing, for 10 s"),
    ("sequential", "1 GiB read in order"),
    ("streams", "4 x 256 MiB read in order, at once"),
    ("random", "256 KiB at 100 random places"),
    ("random4k", "4 KiB at 200 random places"),
    ("readsmall", "300 files of 16 KiB read"),
    ("first", "the first byte of 50 files"),
    ("listing", "`ls -l` of 10 000 objects"),
]

COMPARED = [workload for workload in dict(REQUESTS) if workload in {row[0] for row in ROWS}]

HEAD = """\
# Measured

Written by `make bench` (`scripts/bench.sh`): `bucketvol mount`, rclone and s3fs on one S3 server through one proxy
(`examples/far_away.rs`) that puts the store 15 ms away, 7.5 ms in each direction, and carries 90 MB/s for each
connection and direction. It measures and asserts nothing.

Each measurement has a server with an empty bucket, a mount and a cache directory of its own. The programs take turns,
{rounds} rounds; the first table shows the best of them. Whether the bucket has something is asked the server directly,
past the proxy, every 50 ms. A program gets {limit} s to answer and the bucket as long to follow; what took longer is
not repeated.

The server is `examples/s3_server.rs --memory`: it verifies signatures and conditions, keeps everything in memory, and
spends a third of the processor time that garage does on the same bytes (`SERVER=garage make bench` measures there; it
passes over `If-Match`, so that bucketvol looks with a HEAD before it overwrites). What it takes to put together an
upload of 1 GiB, half a second on the machine below, is in everybody's figures. Server, proxy and what is measured share
the machine, and {cores} processors is what they share.

bucketvol runs in a control group of 320 MiB: its budget of 256 MiB and 64 MiB. The others may have all there is.

What an answer promises differs. bucketvol has written down on this host what it answers, and waits for the bucket at
fsync; s3fs waits at close already; rclone does not wait for it, at fsync neither, and is left out of that ratio.
"""


def main():
    work = sys.argv[1]
    with open(f"{work}/measured") as lines:
        measured = [json.loads(line) for line in lines]
    rounds = max((m["round"] for m in measured), default=0)
    if any(m["program"] == SOMETIMES for m in measured):
        PROGRAMS.append(SOMETIMES)
    with open(f"{work}/machine") as lines:
        machine = lines.readlines()
    cores = machine[0].split(",")[0].removesuffix(" cores")
    print(HEAD.format(rounds=rounds, limit=LIMIT, cores=cores))
    print("The machine:\n")
    print("".join(f"- {line}" for line in machine))
    print("The command lines, with everything else as each program has it by default:\n\n```")
    with open(f"{work}/commands") as lines:
        print(f"{lines.read().rstrip()}\n```\n")
    drawn = compare(measured)
    with open(f"{work}/chart.svg", "w") as file:
        file.write(chart(PROGRAMS, drawn))
    processor_time(measured)
    count_requests(measured)
    if os.path.exists(f"{work}/warmed"):
        with open(f"{work}/warmed") as answer:
            warm(json.load(answer))
    if os.path.exists(f"{work}/restarted"):
        with open(f"{work}/restarted") as answer:
            restarts(json.load(answer))


def compare(measured):
    """The table of ratios, then every round. Returns what is to be drawn of it."""
    print("## Beside the others\n")
    print("![The same figures as bars](bench.svg)\n")
    print("The ratio says how many times as fast bucketvol is as the best of the others.\n")
    print(f"| | unit | {' | '.join(PROGRAMS)} | ratio |\n|---|---|{'--:|' * len(PROGRAMS)}--:|")
    every, rows = [], []
    for workload, words, instant, amount, unit in ROWS:
        best, cells, all_cells = {}, [], []
        for program in PROGRAMS:
            results = results_of(measured, workload, program)
            seconds = [r[instant] for r in results if instant in r]
            if seconds:
                best[program] = min(seconds)
                cells.append(figure(best[program], amount))
                all_cells.append(", ".join(figure(s, amount) for s in seconds))
            else:
                cells.append(excuse(results))
                all_cells.append(cells[-1])
        rivals = [p for p in PROGRAMS[1:] if (workload, instant, p) != ("patch", "answered", WITHOUT_FSYNC)]
        print(f"| {words} | {unit} | {' | '.join(cells)} | {ratio(best, measured, workload, rivals)} |")
        every.append(f"| {words} | {unit} | {' | '.join(all_cells)} |")
        speeds = [1 / best[program] if program in best else 0 for program in PROGRAMS]
        if any(speeds):
            rows.append((words, unit, list(zip(PROGRAMS, cells, speeds))))
    print(f"\nEvery round, in order:\n\n| | unit | {' | '.join(PROGRAMS)} |\n|---|---|{'--:|' * len(PROGRAMS)}")
    print("\n".join(every), end="\n\n")
    remarks = [
        f"- {m['workload']}, {m['program']}, round {m['round']}: {remark}"
        for m in measured
        for remark in remarks_on(m["result"])
    ]
    if remarks:
        print("\n".join(remarks), end="\n\n")
    return rows


def remarks_on(result):
    if "failed" in result:
        yield f"failed: {result['failed']}"
    if "left" in result:
        yield f"5 s later the bucket still has what should be gone: {', '.join(result['left'])}"


def processor_time(measured):
    print("Processor seconds from the start until the bucket has it all, the first round: the program itself, the")
    print("server, the proxy.\n")
    print(f"| workload | {' | '.join(PROGRAMS)} |\n|---|{'--:|' * len(PROGRAMS)}")
    for workload in COMPARED:
        words = dict(REQUESTS)[workload]
        cells = []
        for program in PROGRAMS:
            results = results_of(measured, workload, program)
            spent = results[0].get("spent") if results else None
            cells.append(" + ".join(f"{s:.1f}" for s in spent.values()) if spent else excuse(results))
        print(f"| {words} | {' | '.join(cells)} |")
    print("\nThe most memory that the program had until then, in MiB, the first round:\n")
    print(f"| workload | {' | '.join(PROGRAMS)} |\n|---|{'--:|' * len(PROGRAMS)}")
    for workload in COMPARED:
        peaks = [(results_of(measured, workload, program) or [{}])[0].get("peak") for program in PROGRAMS]
        cells = [f"{peak:.0f}" if peak else "-" for peak in peaks]
        print(f"| {dict(REQUESTS)[workload]} | {' | '.join(cells)} |")
    print()


def results_of(measured, workload, program):
    return [m["result"] for m in measured if (m["workload"], m["program"]) == (workload, program)]


def figure(seconds, amount):
    number = seconds if amount is None else amount / seconds
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def excuse(results):
    """Why there is no figure."""
    if not results:
        return "not run"
    if "failed" in results[0]:
        return "failed"
    if "over" in results[0]:
        return f">{results[0]['over']} s"
    return "not within the time"


def ratio(best, measured, workload, rivals):
    """Against the better of the others; against the limit where neither made it."""
    others = [best[program] for program in rivals if program in best]
    if "bucketvol" not in best:
        return "-"
    if others:
        return f"{min(others) / best['bucketvol']:.2g}"
    limits = [r["over"] for p in rivals for r in results_of(measured, workload, p) if "over" in r]
    return f">{min(limits) / best['bucketvol']:.2g}" if limits else "-"


def count_requests(measured):
    print("## What bucketvol asks of the store\n")
    print("Requests by verb from the start of the workload until all of it is in the bucket, in the first round; every")
    print("attempt counts. The mount has been listed before. One PUT of each mount that writes tries out whether the")
    print("store checks conditions.\n")
    print("| workload | seconds | requests | by verb |\n|---|--:|--:|---|")
    for workload, words in REQUESTS:
        results = results_of(measured, workload, "bucketvol")
        first = results[0] if results else {}
        if "requests" in first:
            requests = first["requests"]
            verbs = ", ".join(f"{verb} {count}" for verb, count in requests.items()) or "-"
            print(f"| {words} | {figure(first['answered'], None)} | {sum(requests.values())} | {verbs} |")
        else:
            print(f"| {words} | {excuse(results)} | - | - |")


def warm(measured):
    print("\n## What is known already\n")
    print("`scripts/bench/warm.py`: one file of 96 MiB in the block cache and none of it in the kernel's, beside the least")
    print("that a FUSE file system can do (`examples/fuse_ceiling.rs`: one file of zeros). Best of five.\n")
    print("| | unit | bucketvol | ceiling | of it |\n|---|---|--:|--:|--:|")
    for what, words, unit in [
        ("sequential", "96 MiB in order, 1 MiB at a time", "MiB/s"),
        ("random", "4 KiB at random places, O_DIRECT", "reads/s"),
    ]:
        ours, ceiling = measured[what]["bucketvol"], measured[what]["ceiling"]
        print(f"| {words} | {unit} | {ours:.0f} | {ceiling:.0f} | {ours / ceiling:.0%} |")
    found = ", ".join(f"{speed:.0f}" for speed in measured["find"])
    print(f"\n`find` of 20 000 files within the ttl, entries/s, the first one with the listing: {found}.")


def restarts(measured):
    inodes = measured["inodes"]
    count, opened = f"{inodes:,}".replace(",", " "), f"{measured['open']:,}".replace(",", " ")
    print(f"\n## A restart, with {count} inodes known and {opened} files open\n")
    print("A directory serves as the bucket. statfs(2), which no cache answers, is asked every 5 ms; the figure is the")
    print("longest that it took, from the old worker's last answer to the new one's first. " + verdict(measured["same"]))
    print("\n| the worker is | seconds, one after the other |\n|---|--:|")
    for what, words in (("kill", "killed (SIGKILL)"), ("restart", "replaced (`bucketvol restart`)")):
        print(f"| {words} | {', '.join(figure(s, None) for s in measured[what])} |")
    print(f"\nWhat is kept for the next worker takes {measured['kept'] / inodes:.0f} bytes an inode, the worker itself", end=" ")
    print(f"{measured['resident'] / inodes:.0f}.")


def verdict(is_same):
    return "Every open file kept its inode number." if is_same else "OPEN FILES DID NOT KEEP THEIR INODE NUMBERS."


if __name__ == "__main__":
    main()
