"""What is prepared on one machine comes out the same on the other, whatever the order in which it arrives."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.gpu import prepare, unpack


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A folder of random bytes and text, in batches of 25 kB at most."""
    monkeypatch.setattr(prepare, "PART", 8 << 10)
    monkeypatch.setattr(prepare, "LIST", 1 << 10)
    folder = tmp_path / "whole"
    (folder / "inner").mkdir(parents=True)
    (folder / "noise").write_bytes(os.urandom(50_000))
    (folder / "inner" / "text").write_text("the same again\n" * 5000)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(folder, "whole")
    archive.seek(0)
    return prepare.write_batches(archive, tmp_path / "out", 25_000)


def test_what_arrives_batch_after_batch_is_put_together(tmp_path: Path, batches: list[Path]) -> None:
    assert len(batches) >= 3
    arrived, into = tmp_path / "arrived", tmp_path / "into"
    for number, batch in enumerate(reversed(batches), start=1):
        assert sum(path.stat().st_size for path in batch.iterdir()) <= 25_000 + 4_000  # here the list is not small
        shutil.rmtree(arrived, ignore_errors=True)  # only the newest is there
        shutil.copytree(batch, arrived / batch.name)
        missing = unpack.unpack(arrived, into)
        assert missing == [other.name for other in batches[: len(batches) - number]]
    assert unpack.unpack(arrived, into) == []
    for name in ("noise", "inner/text"):
        assert (into / "whole" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (into / "parts").exists()


def test_a_damaged_part_is_refused_by_name(tmp_path: Path, batches: list[Path]) -> None:
    part = next(batches[0].glob("*.xz"))
    part.write_bytes(part.read_bytes()[:-8] + b"damaged!")
    with pytest.raises(SystemExit, match=f"{part.name} is damaged.*carry carry-1 again"):
        unpack.unpack(tmp_path / "out", tmp_path / "into")


def test_batches_of_two_preparations_are_not_mixed(tmp_path: Path, batches: list[Path]) -> None:
    (batches[1] / unpack.PARTS).write_text("[]")
    with pytest.raises(SystemExit, match="not of one preparation"):
        unpack.unpack(tmp_path / "out", tmp_path / "into")


def test_the_command_says_what_is_missing(tmp_path: Path, batches: list[Path]) -> None:
    command = [sys.executable, unpack.__file__, str(batches[0]), str(tmp_path / "into")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == unpack.MISSING
    assert ended.stdout == f"still missing: {', '.join(batch.name for batch in batches[1:])}\n"


def test_the_largest_parts_go_first_and_no_batch_is_too_large() -> None:
    sizes = [9, 3, 3, 4, 8, 8, 6, 3, 24, 32, 33]
    filled = prepare.fill(sizes, 49)
    assert sorted(part for batch in filled for part in batch) == list(range(len(sizes)))
    assert len(filled) == 3  # 133 in all
    assert all(sum(sizes[part] for part in batch) <= 49 for batch in filled)
    assert filled[0][0] == sizes.index(33)


def test_what_the_other_machine_has_stays_here() -> None:
    there = {"torch", "onnxruntime", "ray", "numpy"}
    asked = prepare.packages(there)
    names = {line.split("=")[0].split("[")[0] for line in asked}
    assert not names & there
    assert {"pydantic", "fastapi", "locust", "ctranslate2", "uvicorn"} <= names
