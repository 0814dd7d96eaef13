"""Everything that a machine with a card and without a network lacks, in folders small enough to be carried there.

    python tests/gpu/prepare.py OUT

runs where there is a network. It installs the packages for the other machine's Python into a folder, adds the
checkpoint, and cuts the whole into compressed parts: OUT/carry-1, OUT/carry-2, … hold at most 49 MB each. On the other
machine ``tests/gpu/unpack.py`` puts together what has arrived, and ``tests/gpu/run.sh`` runs on it.

It needs pip and Python's own library only. A package at one version comes from ``constraints.txt``.
"""

import argparse
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[2]
PARTS = "parts.json"
PART = 32 << 20
"""Bytes of the archive that are compressed together, and so a part's size at most."""
MEGABYTES = 49
LIST = 64 << 10
"""Bytes that are kept for the list of parts, which every batch has."""
LEAST = -(-(PART + LIST) // 10**6)
"""Megabytes of a batch in which any part has room."""
PRETRAINED = ROOT / "model" / "pretrained"
CHECKPOINT = ("config.json", "model.safetensors", "tokenizer.model")
"""The files that a checkpoint has: `model.checkpoint` says so, which cannot be read without torch."""
RUNTIME = "onnxruntime-gpu"
LEFT_OUT = ("libonnxruntime_providers_tensorrt.so",)
THERE = (
    "torch numpy onnx onnxscript onnx-ir ml-dtypes protobuf sympy mpmath networkx lxml ray onnxruntime onnxruntime-gpu"
)
"""What the other machine has, or does without: too large to be carried."""
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")


def normal(name: str) -> str:
    """A package's name as all spellings of it are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(there: set[str]) -> list[str]:
    """The packages that serving, its load test, the benchmark and the tests ask for, but for those that are ``there``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    lines = [
        line
        for line in asked
        if not line.startswith(("dragoman", "mypy", "ruff", "types-", "hypothesis", "schemathesis", "h11", "requests"))
    ]
    return sorted({line for line in lines if normal(re.split(r"[\[=<>]", line)[0]) not in there})


def pip(python: str, *arguments: str) -> None:
    """Run pip for another machine's ``python`` (such as 3.12); SystemExit says in one line why it fails."""
    platforms = [f"--platform={platform}_x86_64" for platform in PLATFORMS]
    target = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms]
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments, *target]
    ended = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, errors="replace")
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR: ")]
        # The first says what is wrong, those after it what comes of that.
        fault = [*errors, *lines[-1:], f"status {ended.returncode}"][0]
        sys.exit(f"pip failed: {fault.removeprefix('ERROR: ')}")


def install(site: Path, python: str, there: set[str]) -> None:
    """Install what is not ``there`` into ``site``, ONNX Runtime for CUDA without the libraries `LEFT_OUT`."""
    constraints = ROOT / "constraints.txt"
    version = re.search(r"^onnxruntime==(\S+)$", constraints.read_text(encoding="utf-8"), re.M)
    if version is None:
        sys.exit("constraints.txt has no line onnxruntime==…")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        choose = ["install", "--dry-run", "--ignore-installed", f"--target={folder}", f"--report={report}"]
        pip(python, *choose, f"--constraint={constraints}", *packages(there))
        found = [each["metadata"] for each in json.loads(report.read_text(encoding="utf-8"))["install"]]
    chosen = [f"{each['name']}=={each['version']}" for each in found if normal(each["name"]) not in there]
    chosen.append(f"{RUNTIME}=={version[1]}")
    pip(python, "install", "--no-deps", "--no-compile", f"--target={site}", *chosen)
    shutil.rmtree(site / "bin", ignore_errors=True)  # its scripts name this machine's Python
    for name in LEFT_OUT:
        for path in site.rglob(name):
            path.unlink()


def parts(archive: BinaryIO) -> Iterator[bytes]:
    """The bytes of ``archive``, `PART` at a time, each compressed alone so that several can be unpacked at once."""
    # Two cores at least, and no more of the archive in memory than they work on.
    workers = os.cpu_count() or 2
    with ThreadPoolExecutor(workers) as pool:
        while chunks := [chunk for _ in range(workers) if (chunk := archive.read(PART))]:
            yield from pool.map(lambda chunk: lzma.compress(chunk, check=lzma.CHECK_CRC64, preset=6), chunks)


def fill(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Which parts of these ``sizes`` travel together, ``limit`` bytes at most: the largest first, each where it fits."""
    batches: list[list[int]] = []
    for part in sorted(range(len(sizes)), key=lambda part: -sizes[part]):
        room = (batch for batch in batches if sizes[part] + sum(sizes[other] for other in batch) <= limit)
        if (batch := next(room, None)) is None:
            batches.append(batch := [])
        batch.append(part)
    return batches


def write_batches(archive: BinaryIO, out: Path, limit: int) -> list[Path]:
    """Write ``archive`` compressed into ``out``/carry-1, …, with at most ``limit`` bytes in each; returns the folders."""
    out.mkdir(parents=True, exist_ok=True)
    names, sizes, sums = [], [], []
    for number, data in enumerate(parts(archive)):
        names.append(f"part-{number:03}.xz")
        sizes.append(len(data))
        sums.append(hashlib.sha256(data).hexdigest())
        (out / names[-1]).write_bytes(data)
    room = limit - LIST
    if max(sizes) > room:
        sys.exit(f"a part has {max(sizes) / 1e6:.1f} MB: --megabytes must be more")
    filled = {out / f"carry-{number}": batch for number, batch in enumerate(fill(sizes, room), start=1)}
    home = {part: folder.name for folder, batch in filled.items() for part in batch}
    entries = [{"name": names[part], "batch": home[part], "sha256": sums[part]} for part in range(len(names))]
    for folder, batch in filled.items():
        folder.mkdir()
        for part in batch:
            (out / names[part]).rename(folder / names[part])
        (folder / PARTS).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return list(filled)


def megabytes(text: str) -> int:
    """The size of a batch; ArgumentTypeError unless a part has room in it."""
    if not (text.isdecimal() and int(text) >= LEAST):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {LEAST} or more: a part must have room")
    return int(text)


def python_version(text: str) -> str:
    """A Python such as 3.12; ArgumentTypeError where it is none."""
    if not re.fullmatch(r"3\.[0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a Python's version, such as 3.12")
    return text


def checkpoint(text: str) -> Path:
    """The folder of a checkpoint, or of the one that ships by this name; ArgumentTypeError where files are missing."""
    ships = [path.parent.name for path in sorted(PRETRAINED.glob("*/config.json"))]
    folder = PRETRAINED / text if text in ships else Path(text)
    missing = [name for name in CHECKPOINT if not (folder / name).is_file()]
    if missing:
        known = f"name a checkpoint's folder, or one that ships: {', '.join(ships)}"
        raise argparse.ArgumentTypeError(f"{folder} has no {', no '.join(missing)}; {known}")
    return folder


def make_empty(out: Path) -> None:
    """Make the folder ``out``; SystemExit where it cannot be, or holds something."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = any(out.iterdir())
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        sys.exit(f"{out} cannot be written to: {error.strerror}; name a new folder")
    if held:
        sys.exit(f"{out} is not empty; name a new folder")


def empty(out: Path) -> None:
    """Remove all that has been written into ``out``."""
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def main(arguments: list[str]) -> None:
    """Prepare everything, and say how large it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", type=Path, help="Folder to write; it must not exist or be empty.")
    parser.add_argument("--python", type=python_version, default="3.12", help="The other machine's Python.")
    size = f"Size of a batch at most, {LEAST} or more."
    parser.add_argument("--megabytes", type=megabytes, default=MEGABYTES, help=size)
    bring = "The checkpoint to bring: a folder, or one that ships."
    parser.add_argument("--checkpoint", type=checkpoint, default="en-de-base", help=bring)
    parser.add_argument("--there", default=THERE, help="Packages not to bring: the other machine has them.")
    options = parser.parse_args(arguments)
    make_empty(options.out)
    try:
        batches = prepare(options)
    except BaseException:
        empty(options.out)
        raise
    for batch in batches:
        files = [path for path in batch.iterdir() if path.is_file()]
        print(f"{batch}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")


def prepare(options: argparse.Namespace) -> list[Path]:
    """Install everything, and write it in batches; returns their folders."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as archive:
        install(Path(folder, "site"), options.python, {normal(name) for name in options.there.split()})
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(Path(folder, "site"), "site")
            tar.add(options.checkpoint, "checkpoint")
        print(f"{archive.tell() / 1e6:.0f} MB to carry; compressing them takes a minute or two", flush=True)
        archive.seek(0)
        return write_batches(archive, options.out, options.megabytes * 10**6)


if __name__ == "__main__":
    main(sys.argv[1:])
