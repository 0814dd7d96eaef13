"""How many processor cores there are for this process: those it may run on, within what its container may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def cores(root: Path = ROOT) -> int:
    """Whole cores, at least 1; ``root`` is where ``/proc`` and ``/sys`` lie."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # More threads than the quota would all be stopped for the rest of each period as soon as they have used it up.
    return max(1, math.floor(min(allowed, *quotas(root), math.inf)))


def quotas(root: Path = ROOT) -> Iterator[float]:
    """Processor time over time that each control group of this process allows, from its own to the outermost.

    Version 2 (``cpu.max``) and version 1 (``cpu.cfs_quota_us``) of Linux' control groups.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for number, controllers, path in (line.split(":", 2) for line in groups if line.count(":") >= 2):
        if number == "0" and not controllers:
            for folder in (*_upwards(mounts, path), *_upwards(mounts / "unified", path)):
                yield from _ratio(_words(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            # The folder has the name of its controllers, in whatever order, and often of each of them too.
            named = [mounts / controllers, mounts / "cpu", mounts / "cpuacct,cpu", mounts / "cpu,cpuacct"]
            for folder in dict.fromkeys(each for mount in named for each in _upwards(mount, path)):
                yield from _ratio(_words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us"))


def _upwards(mount: Path, path: str) -> list[Path]:
    """The folder of a group and of all around it. Inside a container the outer ones may not be there."""
    inner = PurePosixPath(path.lstrip("/"))
    return [mount / each for each in (inner, *inner.parents) if ".." not in each.parts]


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except OSError:
        return []


def _ratio(words: list[str]) -> Iterator[float]:
    """Quota over period, where there is one: without, version 2 says "max" and version 1 -1."""
    if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
        yield int(words[0]) / int(words[1])
