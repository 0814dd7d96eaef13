import json
import re
import shutil
from pathlib import Path

import pytest

from model import checkpoint
from tests.conftest import SMALL
from tests.service import dragoman

PAIRS = [
    ("Open the file.", "Öffnen Sie die Datei."),
    ("The printer does not answer.", "Der Drucker antwortet nicht."),
    ("Where is the station?", "Wo ist der Bahnhof?"),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{english}\t{german}\tweb\n" for english, german in PAIRS), encoding="utf-8")
    return path


def test_counts_wrong_neighbours_for_each_pooling(data: Path) -> None:
    done = dragoman("vectors", "evaluate", SMALL, "--data", data)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith("{")]
    assert [(line["set"], line["pairs"], line["pooling"]) for line in lines] == [
        ("pairs", 3, "attention"),
        ("pairs", 3, "mean"),
    ]
    assert lines[0]["en-de"] == lines[0]["de-en"] == 0
    assert lines[0].keys() == {"set", "pairs", "pooling", "en-de", "de-en"}
    assert re.search(r"\| pairs +\| +3 \| attention \| +0.0% \| +0.0% \| +0.0% \|", done.stdout.decode())


def test_what_cannot_be_encoded_is_named_and_what_was_done_is_shown(data: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.tsv"
    long.write_text("Short.\tKurz.\nLong.\t" + "lang " * 400 + "\n", encoding="utf-8")
    refused = dragoman("vectors", "evaluate", SMALL, "--data", data, "--data", long)
    assert refused.returncode == 1
    assert "encoding de, text 2: text has" in refused.stderr.decode()
    assert "| pairs" in refused.stdout.decode()
    refused = dragoman("vectors", "evaluate", SMALL, "--data", data, "--languages", "en")
    assert refused.stderr.decode().strip() == "--languages is 'en': name two, such as en-de"


@pytest.mark.slow
def test_fits_a_checkpoint_and_says_what_is_wrong(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint.locate(SMALL), folder)
    (folder / checkpoint.POOLING).unlink(missing_ok=True)
    settings = [f"--set={each}" for each in ("batch=2", "steps=2", "queries=2", "narrow=4")]
    done = dragoman("vectors", "fit", folder, "--data", data, "--dev", data, *settings)
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert written["written"] == str(folder / checkpoint.POOLING)
    fitted = checkpoint.load(folder).pooling
    assert fitted
    assert fitted.value.shape == (2, 256, 4)
    refused = dragoman("vectors", "fit", folder, "--data", data, "--dev", data)
    assert refused.returncode == 1
    assert (
        "3 pairs to fit on and 3 of dev are neither too short nor too long: a step takes 2048"
        in refused.stderr.decode()
    )
    refused = dragoman("vectors", "fit", folder, "--data", data, "--dev", data, "--set", "size=3")
    assert refused.stderr.decode().strip() == "setting size: Extra inputs are not permitted, not 3"
