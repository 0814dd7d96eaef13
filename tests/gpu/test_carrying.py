"""What is prepared on one machine comes out the same on the other, whatever the order in which it arrives."""

import io
import json
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
    for name in unpack.UNPACKED:
        (folder / name).mkdir(parents=True)
    (folder / "site" / "noise").write_bytes(os.urandom(50_000))
    (folder / "checkpoint" / "text").write_text("the same again\n" * 5000)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in unpack.UNPACKED:
            tar.add(folder / name, name)
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
    for name in ("site/noise", "checkpoint/text"):
        assert (into / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (into / "parts").exists()


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8] + b"damaged!")


def test_a_damaged_part_is_refused_by_name(tmp_path: Path, batches: list[Path]) -> None:
    part = next(batches[0].glob("*.xz"))
    damage(part)
    with pytest.raises(SystemExit, match=f"{part.name} is damaged.*remove it, and carry carry-1 again"):
        unpack.unpack(tmp_path / "out", tmp_path / "into")


def test_a_damaged_copy_of_a_part_is_in_no_other_copys_way(tmp_path: Path, batches: list[Path]) -> None:
    shutil.copytree(batches[0], tmp_path / "out" / "later")
    damage(part := next(batches[0].glob("*.xz")))
    assert unpack.unpack(tmp_path / "out", tmp_path / "into") == []
    damage(tmp_path / "out" / "later" / part.name)
    with pytest.raises(SystemExit, match=r"are damaged.*remove them, and carry carry-1 again"):
        unpack.unpack(tmp_path / "out", tmp_path / "new")


def of_another_preparation(batch: Path) -> None:
    entries = json.loads((batch / unpack.PARTS).read_text())
    entries[0]["sha256"] = "0" * 64
    (batch / unpack.PARTS).write_text(json.dumps(entries))


def test_batches_of_two_preparations_are_not_mixed(tmp_path: Path, batches: list[Path]) -> None:
    of_another_preparation(batches[1])
    with pytest.raises(SystemExit, match="not of one preparation"):
        unpack.unpack(tmp_path / "out", tmp_path / "into")


def test_what_is_unpacked_of_an_older_preparation_is_not_ready(tmp_path: Path, batches: list[Path]) -> None:
    into = tmp_path / "into"
    assert unpack.unpack(tmp_path / "out", into) == []
    for batch in batches:
        of_another_preparation(batch)
    with pytest.raises(SystemExit, match=f"not of one preparation: remove the older ones, and {into}"):
        unpack.unpack(tmp_path / "out", into)


def test_what_was_deleted_is_not_ready_and_comes_again(tmp_path: Path, batches: list[Path]) -> None:
    # What has arrived may lie below what it is unpacked into.
    into = tmp_path
    assert unpack.unpack(tmp_path / "out", into) == []
    shutil.rmtree(into / "site")
    assert unpack.unpack(tmp_path / "nothing", into) == [batch.name for batch in batches]
    assert not (into / "ready").exists()
    assert unpack.unpack(tmp_path / "out", into) == []
    assert (into / "site" / "noise").exists()
    assert (into / "ready").exists()


@pytest.mark.parametrize("text", ["", "[]", "[1]", '[{"name": "part-000.xz"', "5"])
def test_a_damaged_list_is_named_where_no_other_is_there(tmp_path: Path, batches: list[Path], text: str) -> None:
    (batches[0] / unpack.PARTS).write_text(text)
    fault = f"^{batches[0] / unpack.PARTS} is damaged: carry carry-1 again$"
    with pytest.raises(SystemExit, match=fault):
        unpack.unpack(batches[0], tmp_path / "into")
    assert unpack.unpack(tmp_path / "out", tmp_path / "into") == []


def test_a_file_is_nothing_to_unpack_into(tmp_path: Path, batches: list[Path]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=f"^cannot unpack into {tmp_path / 'file'}: .*"):
        unpack.main([str(tmp_path / "out"), str(tmp_path / "file")])


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


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--megabytes", "33"], "'33' is not a whole number of 34 or more"),
        (["--megabytes", "much"], "'much' is not a whole number of 34 or more"),
        (["--python", "3"], "'3' is not a Python's version"),
        (["--python", "python3.12"], "'python3.12' is not a Python's version"),
        (["--checkpoint", "nothing"], "nothing has no config.json, no model.safetensors, no tokenizer.model; name a"),
    ],
)
def test_what_cannot_be_prepared_is_refused_before_anything_is_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], fault: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        prepare.main([str(tmp_path / "out"), *arguments])
    assert ended.value.code == 2
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_ships_goes_by_its_name() -> None:
    assert prepare.checkpoint("en-de-small") == prepare.PRETRAINED / "en-de-small"


def test_only_an_empty_folder_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="is not empty; name a new folder"):
        prepare.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="file cannot be written to: File exists; name a new folder"):
        prepare.main([str(tmp_path / "file")])


def test_what_fails_leaves_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def failing(sizes: object, limit: int) -> list[list[int]]:
        seen.extend(path.name for path in (tmp_path / "out").iterdir())
        raise OSError("no space left")

    monkeypatch.setattr(prepare, "install", lambda site, *_: site.mkdir())
    monkeypatch.setattr(prepare, "CHECKPOINT", ("one",))
    monkeypatch.setattr(prepare, "fill", failing)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "one").write_text("one")
    with pytest.raises(OSError, match="no space left"):
        prepare.main([str(tmp_path / "out"), "--checkpoint", str(tmp_path / "checkpoint")])
    assert seen == ["part-000.xz"]
    assert list((tmp_path / "out").iterdir()) == []


def test_pips_failure_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^pip failed: Could not find .* requirement none-of-this-name .*") as ended:
        prepare.pip("3.12", "install", "--no-index", f"--target={tmp_path}", "none-of-this-name")
    assert "\n" not in str(ended.value)
