"""Put together what `tests/gpu/prepare.py` has made, on the machine it was carried to.

    python3 tests/gpu/unpack.py ARRIVED INTO

looks for batches anywhere below the folder ARRIVED and unpacks their parts into INTO. It may run after each batch: it
keeps what it has, so batches that have been unpacked need not stay. It ends with 0 when everything is there, with 3
when batches are still missing, and then says which. INTO holds ``site`` (for PYTHONPATH) and ``checkpoint`` in the end.

Run it with the Python that will use them: CUDA's libraries that pip has installed for it are linked into ``site``.
It needs Python's own library only.
"""

import argparse
import hashlib
import json
import lzma
import os
import shutil
import sys
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PARTS = "parts.json"
MISSING = 3
"""The exit status while batches are missing."""


def unpack_part(arrived: Path, entry: dict[str, Any], folder: Path) -> None:
    """Unpack one part of those that have ``arrived`` into ``folder``; SystemExit when it is damaged."""
    found = next((path for path in sorted(arrived.rglob(entry["name"]))), None)
    target = folder / entry["name"].removesuffix(".xz")
    if found is None or target.exists():
        return
    data = found.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        sys.exit(f"{found} is damaged: its sha256 is not the one in {PARTS}; carry {entry['batch']} again")
    unfinished = target.with_suffix(".unfinished")
    unfinished.write_bytes(lzma.decompress(data))
    unfinished.replace(target)


class Joined:
    """Files read one after the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._chunks = (path.read_bytes() for path in paths)
        self._chunk = memoryview(b"")

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only where the last file ends."""
        data = bytearray()
        while len(data) < size:
            if not self._chunk:
                self._chunk = memoryview(next(self._chunks, b""))
                if not self._chunk:
                    break
            more = self._chunk[: size - len(data)]
            self._chunk = self._chunk[len(more) :]
            data += more
        return bytes(data)


def unpack(arrived: Path, into: Path) -> list[str]:
    """Unpack what has ``arrived``; when that was the last of it, all of it. Returns the batches that are missing."""
    ready, folder = into / "ready", into / "parts"
    if ready.exists():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / PARTS
    lists = [kept] if kept.exists() else sorted(arrived.rglob(PARTS))
    if not lists:
        sys.exit(f"there is no {PARTS} below {arrived}: no batch has arrived")
    entries = json.loads(lists[0].read_text(encoding="utf-8"))
    if len({path.read_bytes() for path in (*lists, *arrived.rglob(PARTS))}) > 1:
        sys.exit(f"the batches below {arrived} are not of one preparation: remove the older ones, and {into}")
    kept.write_bytes(lists[0].read_bytes())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda entry: unpack_part(arrived, entry, folder), entries))
    paths = [folder / entry["name"].removesuffix(".xz") for entry in entries]
    missing = sorted({entry["batch"] for entry, path in zip(entries, paths, strict=True) if not path.exists()})
    if not missing:
        with tarfile.open(fileobj=Joined(paths), mode="r|") as tar:  # type: ignore[call-overload]
            tar.extractall(into, filter="data")
        shutil.rmtree(folder)
        ready.touch()
    return missing


def link_libraries(site: Path) -> None:
    """Let ONNX Runtime find CUDA's libraries of pip's packages: it looks for them beside itself only."""
    link = site / "nvidia"
    for folder in sys.path:
        there = Path(folder, "nvidia")
        if any(there.glob("cu*/lib/libcublas.so.*")) and there.resolve() != link.resolve():
            link.unlink(missing_ok=True)
            link.symlink_to(there.resolve())
            return


def main(arguments: list[str]) -> int:
    """Unpack, and say what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("arrived", type=Path, help="Folder below which batches have arrived.")
    parser.add_argument("into", type=Path, help="Folder to unpack into.")
    options = parser.parse_args(arguments)
    missing = unpack(options.arrived, options.into)
    if not missing:
        link_libraries(options.into / "site")
    print(f"still missing: {', '.join(missing)}" if missing else f"{options.into} is ready")
    return MISSING if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
