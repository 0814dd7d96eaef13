"""The folder that all replicas of a machine share: given by the setting `state`, or private and gone in the end."""

import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from serving.start import StartError
from serving.totals import Totals


def check(folder: Path) -> None:
    """Make ``folder`` unless it is there, and use it once as a replica does; StartError when that fails."""
    try:
        Totals(folder).close()
    except OSError as error:
        message = f"cannot use the state folder {folder}: {error.strerror or error}"
        raise StartError(f"{message}; choose another with --state, or leave it out") from None


def temporary() -> tuple[Path, Callable[[], None]]:
    """A new folder that only this user can enter, and what removes it; StartError when none can be made."""
    inside = os.environ.get("TMPDIR") or "/tmp"
    try:
        folder = Path(tempfile.mkdtemp(prefix="dragoman-", dir=inside))
    except OSError as error:
        message = f"cannot write to {inside}: {error.strerror}"
        raise StartError(
            f"{message}; set TMPDIR to a folder that can be written to, or choose one with --state"
        ) from None
    return folder, functools.partial(shutil.rmtree, folder, ignore_errors=True)


def private(folder: Path) -> Path:
    """``folder``, made for this user alone where others may write too; PermissionError when it is somebody else's."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError(f"{folder} is open to others; remove it, or choose another folder with the setting state")
    return folder
