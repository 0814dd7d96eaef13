import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model import checkpoint
from model.pairs import read_pairs
from model.translate import translate
from tests.service import dragoman

TINY = ["vocabulary=800", "width=32", "heads=4", "feed_forward=64", "encoder_layers=1", "decoder_layers=1", "norm=pre"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_training_that_is_ended_is_saved_and_goes_on(tmp_path: Path, sentences: list[str], number: int) -> None:
    data, run = tmp_path / "pairs.tsv", tmp_path / "run"
    data.write_text("".join(f"{line}\t{line[::-1]}\n" for line in sentences if "\t" not in line), encoding="utf-8")
    settings = [f"--set=model.{size}" for size in TINY] + ["--set=save_every=1", "--set=evaluate_every=1000000"]
    command = [
        sys.executable,
        "-m",
        "serving.cli",
        "train",
        str(run),
        "--data",
        str(data),
        "--dev",
        str(data),
        *settings,
    ]
    # As in a shell's background job.
    process = subprocess.Popen(
        ["bash", "-c", "trap '' INT; exec \"$@\"", "bash", *command], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (run / "state.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    try:
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, told
    found = re.search(r"stopped and saved at step (\d+)", " ".join(told.split()))
    assert found, told
    assert sorted(run.glob("step-*.safetensors"))[-1].name == f"step-{int(found[1]):07}.safetensors"
    again = dragoman("train", run, "--data", data, "--dev", data, *settings, "--set", f"steps={int(found[1]) + 1}")
    assert again.returncode == 0, again.stderr
    assert f"going on from step {found[1]}" in " ".join(again.stderr.decode().split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "stepz=4"], "setting stepz: Extra inputs are not permitted, not 4"),
        (["--set", "model.width=-1"], "setting model.width: Input should be greater than 0, not -1"),
        (["--set", "languages=de"], "setting languages: Input should be a valid tuple, not 'de'"),
        (["--set", "steps"], "--set steps: give it a name and a value, such as steps=2000"),
        (["--set", "steps=1", "--set", "steps.more=1"], "--set steps.more=1: steps has no settings of its own"),
        (["--recipe", "list.json"], "list.json: a recipe is a JSON object of settings"),
        (["--recipe", "latin.json"], "latin.json: 'utf-8' codec can't decode"),
        (["--recipe", "none.json"], "none.json'"),
        ([], "no vocabulary of 37000 pieces can be learnt from this text"),
        (["--data", "torn.tsv.gz"], "torn.tsv.gz is not a whole gzip file"),
        (["--data", "none.tsv"], "none.tsv is not a file"),
    ],
)
def test_training_that_cannot_begin_says_why(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "pairs.tsv").write_text("Open it.\tÖffnen.\n", encoding="utf-8")
    (tmp_path / "torn.tsv.gz").write_bytes(b"Open it.\n")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "latin.json").write_bytes(b'{"name": "caf\xe9"}')
    paths = [tmp_path / part if part.endswith((".json", ".tsv", ".gz")) else part for part in arguments]
    data = ["--data", tmp_path / "pairs.tsv", "--dev", tmp_path / "pairs.tsv"]
    refused = dragoman("train", tmp_path / "run", *data, *paths)
    assert refused.returncode == 1
    assert message in refused.stderr.decode()
    assert "Traceback" not in refused.stderr.decode()
    assert "default" not in refused.stderr.decode()


@pytest.mark.slow
def test_trains_and_evaluates_from_the_command_line(tmp_path: Path, sentences: list[str]) -> None:
    data = tmp_path / "pairs.tsv"
    more = tmp_path / "more.tsv"
    more.write_text("One more.\tNoch eins.\n", encoding="utf-8")
    data.write_text(
        "".join(f"{line}\t{line[::-1]}\tloud\n" for line in sentences if "\t" not in line), encoding="utf-8"
    )
    settings = [f"model.{size}" for size in TINY] + ["steps=4", "evaluate_every=4", "evaluate_sentences=2"]
    flags = [part for setting in settings for part in ("--set", setting)]
    run = tmp_path / "run"
    flags += ["--set", 'pairs=[["en", "de"], ["de", "en"]]']
    trained = dragoman("train", run, "--data", data, "--data", more, "--dev", data, *flags)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.decode().strip() == str(run / "checkpoint")
    scored = dragoman("evaluate", run / "checkpoint", "--data", data, "--limit", "3", "--output", tmp_path / "texts")
    lines = [json.loads(line) for line in scored.stdout.decode().splitlines() if line.startswith("{")]
    assert [(line["direction"], line["pairs"]) for line in lines] == [("en-de", 3), ("de-en", 3)]
    written = tmp_path / "texts" / "pytorch-greedy"
    assert sorted(file.name for file in written.iterdir()) == ["pairs.de-en.txt", "pairs.en-de.txt"]
    loaded = checkpoint.load(run / "checkpoint")
    german = [pair.target for pair in read_pairs(data)[:3]]
    expected = dict(translate(loaded.model, loaded.tokenizer, german, "en"))
    found = (written / "pairs.de-en.txt").read_text(encoding="utf-8").splitlines()
    assert found == [expected[index] for index in range(3)]
    one = dragoman("evaluate", run / "checkpoint", "--data", data, "--limit", "3", "--pair", "de-en")
    assert [json.loads(line) for line in one.stdout.decode().splitlines() if line.startswith("{")] == lines[1:]
    arguments = ["--data", data, "--dev", data, *flags, "--set", f"initialize_from={run / 'checkpoint'}"]
    larger = dragoman("train", tmp_path / "larger", *arguments, "--set", "model.encoder_layers=2")
    assert larger.returncode == 0, larger.stderr
    known = re.search(r"which knows (\d+) of 800 pieces", " ".join(larger.stderr.decode().split()))
    assert known
    assert 700 < int(known[1]) <= 800
    refused = dragoman("train", tmp_path / "other", *arguments, "--set", "model.width=64")
    assert refused.returncode == 1
    assert "width 64 is not the 32 of the model to begin with" in " ".join(refused.stderr.decode().split())
