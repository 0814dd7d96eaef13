"""A Ray of our own on this machine: on loopback only, without the processes that no service needs, its token fresh, its
files in a private folder, and ended by its driver alone.

Import this before anything that imports Ray, which reads its environment then. What it changes in Ray has no setting in
version 2.60; `tests/serving/test_exposure.py` and `test_stopping.py` fail when a later one does without.
"""

import contextlib
import functools
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.ray_environment import prepare_local

prepare_local()

import psutil
import ray
import ray._private.node
import ray._private.utils
import ray._private.worker

from serving.start import StartError
from serving.stop import SIGNALS, Stop

LONGEST_FOLDER = 20
"""Bytes of the path in which ours is made: those of Ray's sockets are up to 87 longer, and the system takes 107."""
END_SECONDS = 5.0
"""How long processes that have been killed are waited for."""


@contextlib.contextmanager
def running(stop: Stop, **options: Any) -> Iterator[Path | None]:
    """Start Ray with ``options`` of ``ray.init``, and end it and everything it started.

    Gives its private folder, which is gone afterwards. While it starts, signals are only noted (``stop.asked``); one
    that was noted before keeps it from starting, and then there is no folder. StartError when it cannot.
    """
    if stop.asked:
        yield None
        return
    _leave_out()
    with _private_folder() as folder:
        stop.at_once = functools.partial(_end_at_once, folder)
        token = folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32), encoding="utf-8")
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        # Whoever tells all processes of a service to end, as systemd does, tells Ray's too, and they would be gone
        # before requests are answered. They inherit the mask; the driver ends them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                _temp_dir=str(folder / "ray"),
                _plasma_directory=None if os.access("/dev/shm", os.W_OK) else str(folder),
                **options,
            )
        except Exception as error:  # Ray raises many kinds
            end()
            way_out = "see whether memory is free, or set RAY_TMPDIR to another folder"
            raise StartError(f"Ray cannot start: {error}; {way_out}") from None
        finally:
            stop.listen()  # Ray has set handlers of its own
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            yield folder
        finally:
            end()


def _leave_out() -> None:
    """Have Ray start no dashboard, no monitor of an autoscaler, no reader of logs; and let its driver keep SIGTERM."""
    node = ray._private.node.Node
    node.start_monitor = node.start_log_monitor = lambda self: None
    node.start_api_server = lambda self, **_: None
    # The agent beside the raylet cannot be left out. Without the dashboard's packages it serves nothing.
    ray._private.utils.get_dashboard_dependency_error = lambda: ImportError("not wanted")
    ray._private.utils.set_sigterm_handler = lambda handler: None


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A new folder for Ray's sockets, logs and token that only this user can enter; gone in the end."""
    chosen, inside = os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR", "/tmp")
    if chosen and len(os.fsencode(chosen)) > LONGEST_FOLDER:
        size = len(os.fsencode(chosen))
        raise StartError(f"RAY_TMPDIR has {size} bytes; the limit is {LONGEST_FOLDER}, for the paths of Ray's sockets")
    inside = chosen or (inside if len(os.fsencode(inside)) <= LONGEST_FOLDER else "/tmp")
    try:
        # Ray opens what it makes to everybody, so it gets a folder within.
        folder = Path(tempfile.mkdtemp(prefix="dragoman-", dir=inside))
    except OSError as error:
        most = f"whose path has {LONGEST_FOLDER} bytes at most"
        said = f"cannot write to {inside}: {error.strerror}; set RAY_TMPDIR to a folder that can be written to, {most}"
        raise StartError(said) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def end() -> None:
    """End Ray and everything it started, without asking."""
    if node := ray._private.worker._global_node:
        # Ray would ask one after another to end and wait a second for each; they do not listen.
        node.kill_all_processes = lambda **_: _kill_children()
    else:
        _kill_children()
    ray.shutdown()


def _end_at_once(folder: Path) -> None:
    _kill_children()
    shutil.rmtree(folder, ignore_errors=True)


def _kill_children() -> None:
    """Kill all that this process has started, directly or not, and wait until they are gone."""
    found: set[psutil.Process] = set()
    # They are known only as long as their parents live, so nobody is killed before nobody new is found.
    while new := set(psutil.Process().children(recursive=True)) - found:
        for process in new:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        found |= new
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + END_SECONDS
    while any(map(_alive, found)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _alive(process: psutil.Process) -> bool:
    try:
        # Whose parent has ended may wait a while for somebody to ask after it.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
