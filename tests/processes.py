"""What the processes of a service are and do, as the system sees them."""

import ipaddress
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil

__all__ = ["Listening", "alive", "family", "kill", "listening", "replicas", "within"]


class Listening(NamedTuple):
    """A port that a process listens on."""

    process: str
    address: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        address = ipaddress.ip_address(self.address)
        mapped = getattr(address, "ipv4_mapped", None)
        return bool((mapped or address).is_loopback)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it has started, directly or not."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def listening(processes: list[psutil.Process]) -> list[Listening]:
    """The TCP ports they listen on."""
    found = []
    for process in processes:
        try:
            name, connections = " ".join(process.cmdline()), process.net_connections("tcp")
        except psutil.Error:
            continue
        found += [
            Listening(name, each.laddr.ip, each.laddr.port) for each in connections if each.status == psutil.CONN_LISTEN
        ]
    return found


def replicas(pid: int) -> set[int]:
    """The replicas of a service that are there, ready or not."""
    found = set()
    for process in family(pid):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ServeReplica"):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; one that only waits for its parent to notice has."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(processes: list[psutil.Process], signal: int) -> None:
    """Send ``signal`` to all of them, one right after another."""
    for process in processes:
        try:
            process.send_signal(signal)
        except psutil.Error:
            continue


def within(seconds: float, met: Callable[[], object], pause: float = 0.05) -> float | None:
    """Seconds until ``met`` was true; None when it was not in time."""
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < seconds:
        if met():
            return passed
        time.sleep(pause)
    return None
