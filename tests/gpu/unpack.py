"""Put together what `tests/gpu/prepare.py` has made, on the machine it was carried to.

    python3 tests/gpu/unpack.py ARRIVED INTO

looks for batches anywhere below the folder ARRIVED and unpacks their parts into INTO. It may run after each batch: it
keeps what it has, so batches that have been unpacked need not stay. It ends with 0 when everything is there, with 3
when batches are still missing, and then says which, with 1 when something is wrong. In the end INTO holds ``site`` (for
PYTHONPATH), ``checkpoint``, the list of parts that they were made of, and ``ready``.

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

PARTS = "parts.json"
UNPACKED = ("site", "checkpoint")
"""The folders that it all is put together to."""
MISSING = 3
"""The exit status while batches are missing."""


def below(arrived: Path, name: str, into: Path) -> list[Path]:
    """The files called ``name`` that have ``arrived``: those that this has written ``into`` a folder are none of them."""
    ours = {(into / each).resolve() for each in (*UNPACKED, "parts", PARTS)}
    return sorted(path for path in arrived.rglob(name) if ours.isdisjoint((path.resolve(), *path.resolve().parents)))


def read_list(path: Path) -> list[dict[str, str]] | None:
    """The parts that a list names, or None where it is damaged."""
    try:
        entries = json.loads(path.read_bytes())
        whole = all(isinstance(each[key], str) for each in entries for key in ("name", "batch", "sha256"))
    except (ValueError, TypeError, KeyError):
        return None
    return entries if entries and whole else None


def choose_list(arrived: Path, into: Path) -> list[dict[str, str]] | None:
    """The list of all that have ``arrived`` and that is kept in ``into``, less those that arrived damaged; None where
    there is none. SystemExit when all are damaged, or when they are not of one preparation.
    """
    for path in (kept := [path for path in (into / PARTS, into / "parts" / PARTS) if path.exists()]):
        if read_list(path) is None:
            sys.exit(f"{path} is damaged: remove {into}, and carry everything again")
    paths = [*kept, *below(arrived, PARTS, into)]
    lists = [entries for path in paths if (entries := read_list(path))]
    if paths and not lists:
        sys.exit(f"{paths[0]} is damaged: carry {paths[0].parent.name} again")
    if any(entries != lists[0] for entries in lists):
        sys.exit(f"the batches below {arrived} are not of one preparation: remove the older ones, and {into}")
    return lists[0] if lists else None


def keep_list(entries: list[dict[str, str]], path: Path) -> None:
    """Write the list to ``path``, whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(entries), encoding="utf-8")
    unfinished.replace(path)


def unpack_part(copies: Sequence[Path], entry: dict[str, str], target: Path) -> None:
    """Unpack the first of the ``copies`` of a part that is whole to ``target``; SystemExit when all are damaged."""
    if target.exists() or not copies:
        return
    for copy in copies:
        data = copy.read_bytes()
        if hashlib.sha256(data).hexdigest() == entry["sha256"]:
            break
    else:
        these = " and ".join(map(str, copies))
        are, them = ("is", "it") if len(copies) == 1 else ("are", "them")
        fault = f"{these} {are} damaged: sha256 is not the one in {PARTS}"
        sys.exit(f"{fault}; remove {them}, and carry {entry['batch']} again")
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
    entries = choose_list(arrived, into)
    if entries is None:
        sys.exit(f"there is no {PARTS} below {arrived}: no batch has arrived")
    if ready.exists() and (into / PARTS).exists() and all((into / name).is_dir() for name in UNPACKED):
        return []
    ready.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    keep_list(entries, folder / PARTS)
    paths = [folder / entry["name"].removesuffix(".xz") for entry in entries]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        copies = [below(arrived, entry["name"], into) for entry in entries]
        list(pool.map(unpack_part, copies, entries, paths))
    missing = sorted({entry["batch"] for entry, path in zip(entries, paths, strict=True) if not path.exists()})
    if not missing:
        for name in UNPACKED:
            shutil.rmtree(into / name, ignore_errors=True)
        with tarfile.open(fileobj=Joined(paths), mode="r|") as tar:  # type: ignore[call-overload]
            tar.extractall(into, filter="data")
        keep_list(entries, into / PARTS)
        ready.touch()
        shutil.rmtree(folder)
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
    try:
        missing = unpack(options.arrived, options.into)
        if not missing:
            link_libraries(options.into / "site")
    except OSError as error:
        sys.exit(f"cannot unpack into {options.into}: {error}")
    print(f"still missing: {', '.join(missing)}" if missing else f"{options.into} is ready")
    return MISSING if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
