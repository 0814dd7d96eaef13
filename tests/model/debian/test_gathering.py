import shutil
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from model.debian import apt
from model.debian.apt import DebianError
from model.debian.dictionary import example_sentences
from model.debian.gathering import gather
from model.debian.sources import SOURCES, Source
from model.pairs import Pair
from tests.model.debian.files import DING, put

FOUND = [Pair("That is good.", "Das ist gut.", "some")]


@pytest.fixture
def downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Packages that have been asked for; there is one, with a dictionary."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("packages are made with dpkg-deb, which is not there")
    dictionary = tmp_path / "usr/share/trans/de-en"
    put(dictionary, DING)
    dictionary.write_bytes(dictionary.read_bytes() + b"Caf\xe9 :: coffee\n")  # not UTF-8
    described = {"Package": "trans-de-en", "Version": "1", "Architecture": "all", "Maintainer": "a", "Description": "a"}
    put(tmp_path / "DEBIAN/control", "".join(f"{field}: {value}\n" for field, value in described.items()))
    asked: list[str] = []

    def run(*command: str, cwd: Path) -> str:
        # What the network has must not decide a test.
        if command[0] == "dpkg-deb":
            return real(*command, cwd=cwd)
        asked.append(command[-1])
        if command[-1] == "gone":
            return "W: something\nE: Unable to locate package gone"
        return real("dpkg-deb", "--build", str(tmp_path), "trans-de-en_1_all.deb", cwd=cwd)

    real = apt._run
    monkeypatch.setattr(apt, "_run", run)
    return asked


def test_what_several_origins_are_in_is_downloaded_once(downloaded: list[str]) -> None:
    found = Counter(pair.origin for pair in gather(["ding", "ding-sent"], Console(quiet=True), []))
    assert found == {"ding": 3, "ding-sent": 1}
    assert downloaded == ["trans-de-en"]


@pytest.mark.usefixtures("downloaded")
def test_what_is_not_there_is_told_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SOURCES, "none", Source(example_sentences, "gone"))
    monkeypatch.setitem(SOURCES, "some", Source(example_sentences, "gone trans-de-en"))
    monkeypatch.setitem(SOURCES, "empty", Source(lambda _: iter(()), "trans-de-en"))
    missing: list[str] = []
    assert list(gather(["none", "some", "empty"], Console(width=200), missing)) == FOUND
    assert missing == ["none", "gone", "empty"]
    told = capsys.readouterr().out
    assert "gone: E: Unable to locate package gone" in told
    assert "none is left out: apt has none of gone" in told
    assert "some: 1 pairs" in told
    with pytest.raises(DebianError, match="apt has none of gone"):
        list(gather(["none"], Console(quiet=True), []))
