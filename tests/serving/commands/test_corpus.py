import json
import os
import shutil
from pathlib import Path

import pytest

from model.pairs import read_pairs
from tests.service import dragoman


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="packages are made with dpkg-deb, which is not there")
def test_gathers_text_that_resembles_none_to_evaluate_on(tmp_path: Path) -> None:
    """With packages of its own in apt's place: what the network has must not decide a test."""
    unpacked = tmp_path / "built/usr/share/trans"
    unpacked.mkdir(parents=True)
    lines = ["Das ist gut. :: That is good.", *["Wer kommt da? :: Who comes there?"] * 2]
    (unpacked / "de-en").write_text("\n".join(lines), encoding="utf-8")
    control = "Package: trans-de-en\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: a\n"
    (tmp_path / "built/DEBIAN").mkdir()
    (tmp_path / "built/DEBIAN/control").write_text(control, encoding="utf-8")
    apt = tmp_path / "bin/apt-get"
    apt.parent.mkdir()
    apt.write_text(f"#!/bin/sh\ndpkg-deb --build {tmp_path / 'built'} trans-de-en_1_all.deb\n", encoding="utf-8")
    apt.chmod(0o755)
    held_out = tmp_path / "dev.tsv"
    held_out.write_text("Who comes there?\tWer kommt?\n", encoding="utf-8")
    output = tmp_path / "new/text.tsv"
    environment = {"PATH": f"{apt.parent}:{os.environ['PATH']}"}
    arguments = ["--held-out", held_out, "--origin", "ding-sent"]
    done = dragoman("corpus", "debian", output, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert output.read_text(encoding="utf-8") == "That is good.\tDas ist gut.\tding-sent\n"
    found = json.loads(done.stdout)
    assert (found["pairs"], found["repeated"], found["held_out"]) == (1, 1, 1)
    done = dragoman("corpus", "debian", output, *arguments, "--raw", **environment)
    assert output.read_text(encoding="utf-8") == "That is good.\tDas ist gut.\tding-sent\n"
    assert json.loads(done.stdout) == {"written": str(output), "pairs": 1, "held_out": 2, "missing": []}
    some = ["--origin", "ding-sent", "--origin", "git"]
    partly = dragoman("corpus", "debian", output, *some, **environment)
    assert partly.returncode == 1
    beside = output.with_name("incomplete-text.tsv")
    assert f"{output} stays as it was: what was gathered lacks git, and is in {beside}" in partly.stderr.decode()
    assert json.loads(partly.stdout)["missing"] == ["git"]
    assert (len(read_pairs(output)), len(read_pairs(beside))) == (1, 2)
    output.unlink()
    assert dragoman("corpus", "debian", output, *some, **environment).returncode == 0
    assert read_pairs(output) == read_pairs(beside)
    refused = dragoman("corpus", "debian", output, "--origin", "dung", **environment)
    assert refused.returncode == 1
    assert refused.stderr.decode().startswith("no such origin: dung; there are ddtp, manpages")


def test_splits_text_and_refuses_what_cannot_be(tmp_path: Path) -> None:
    text, folder = tmp_path / "text.tsv", tmp_path / "new/parts"
    text.write_text("".join(f"word {n} of it\tWort {n} davon\tweb\n" for n in range(30)), encoding="utf-8")
    done = dragoman("corpus", "split", text, folder, "--pairs", "5")
    assert json.loads(done.stdout) == {"written": str(folder), "train": 20, "dev": 5, "test": 5}
    parts = [set(read_pairs(folder / f"{name}.tsv.gz")) for name in ("train", "dev", "test")]
    assert set().union(*parts) == set(read_pairs(text))
    refused = dragoman("corpus", "split", text, folder, "--origin", "net")
    assert refused.returncode == 1
    assert refused.stderr.decode().strip() == "no pairs of net; there are web"
