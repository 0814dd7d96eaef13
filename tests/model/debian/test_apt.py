from pathlib import Path

import pytest
from rich.console import Console

from model.debian import apt
from model.debian.gathering import gather
from model.pairs import Pair
from tests.model.debian.files import put


def test_descriptions_come_with_settings_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*command: str, cwd: Path) -> str:
        settings = Path(command[command.index("-c") + 1]).read_text(encoding="utf-8")
        assert "#clear Acquire::Languages;" in settings
        for language in languages:
            put(
                cwd / f"lists/deb_Translation-{language}",
                f"Description-md5: 1\nDescription-{language}: {language} cat\n",
            )
        return "" if languages else "E: no network"

    monkeypatch.setattr(apt, "_run", run)
    languages = ["en", "de"]
    assert list(gather(["ddtp"], Console(quiet=True), [])) == [Pair("en cat", "de cat", "ddtp")]
    for languages[:], said in (([], "in en: E: no network"), (["en"], "in de: "), (["de"], "in en: ")):
        with pytest.raises(apt.DebianError, match=f"no index of descriptions {said}"):
            list(gather(["ddtp"], Console(quiet=True), []))


def test_a_machine_without_apt_is_told_so() -> None:
    with pytest.raises(apt.DebianError, match="no-such-command is not there"):
        apt._run("no-such-command", cwd=Path())
