import shutil
import sys
from pathlib import Path

import pytest

from loadtest.servers import StartFailed
from serving.bench.versions import OURS, Version
from tests.conftest import ROOT
from tests.service import fetch


def test_what_another_version_would_lend_is_not_started(tmp_path: Path) -> None:
    # Where this environment has the repository installed in place, Python finds there what is missing here.
    for name in ("model", "export"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("bundles", "pretrained"))
    shutil.copytree(ROOT / "serving", tmp_path / "serving", ignore=shutil.ignore_patterns("engine"))
    said = r"Python imports .*/engine/.* in place of a module that|No module named 'serving.engine'"
    with pytest.raises(StartFailed, match=said), Version("old", tmp_path, sys.executable).serving(idle=False):
        pass


def test_a_version_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    for name in OURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "serving" / "__init__.py").write_text("import nobody_has_this\n")
    with pytest.raises(StartFailed, match="nobody_has_this"), Version("old", tmp_path, sys.executable).serving(False):
        pass


@pytest.mark.slow
def test_an_idle_engine_answers_every_kind_of_request_at_once_when_it_is_told_to() -> None:
    with Version("new", ROOT, sys.executable).serving(idle=True) as running:
        url = f"http://127.0.0.1:{running.port}/v1"

        def score(more: str = "") -> float:
            [found] = fetch(f"{url}/translate", f'{{"text": "Close it."{more}}}'.encode()).json["translations"]
            assert isinstance(found["score"], float)
            return found["score"]

        assert score() != -1
        assert running.begin_idling
        running.begin_idling.touch()
        assert score() == score(', "beam_size": 3, "alternatives": 2') == -1
        streamed = fetch(f"{url}/translate", b'{"text": "Close it.", "stream": true}')
        assert b"event: delta" in streamed.content
        assert b'"score":-1.0' in streamed.content
        for pooling in ("attention", "mean", "none"):
            body = f'{{"text": "Close it.", "pooling": "{pooling}"}}'.encode()
            assert fetch(f"{url}/encode", body).status == 200
        for kind in ("encoder", "decoder", "encoder-decoder"):
            answer = fetch(f"{url}/attention", f'{{"text": "Close it.", "kind": "{kind}"}}'.encode()).json
            assert len(answer["heads"][0]["weights"]) == len(answer["queries"])
