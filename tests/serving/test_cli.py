import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from loadtest.servers import clean_environment
from model import checkpoint
from model.pairs import read_pairs
from model.search import beam, sample
from model.translate import translate
from tests.conftest import SHIPPED
from tests.service import free_port


def dragoman(*arguments: str | Path, given: bytes = b"", **environment: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "serving.cli", *map(str, arguments)]
    return subprocess.run(
        command, input=given, capture_output=True, env=clean_environment(**environment), timeout=300, check=False
    )


def test_translates_lines_in_order_and_keeps_blank_ones(tiny_bundle: Path) -> None:
    lines = [f"Line number {number}." for number in range(40)]
    given = "\n".join([*lines[:20], "", " ", *lines[20:]]).encode()
    together = dragoman("translate", "--bundle", tiny_bundle, given=given)
    assert together.returncode == 0
    written = together.stdout.decode().split("\n")
    assert written[20:22] == ["", ""]
    assert written[-1] == ""
    assert len(written) == 43
    again = dragoman("translate", "--bundle", tiny_bundle, given=b"Line number 7.\n").stdout.decode()
    assert again == written[7] + "\n"


def test_a_line_that_cannot_be_translated_is_named_and_the_others_are_not_lost(tiny_bundle: Path) -> None:
    done = dragoman("translate", "--bundle", tiny_bundle, given=f"One.\n{'q' * 3000}\nThree.\n".encode())
    assert done.returncode == 1
    good = dragoman("translate", "--bundle", tiny_bundle, given=b"One.\nThree.\n").stdout.decode().split("\n")
    assert done.stdout.decode().split("\n") == [good[0], "", good[1], ""]
    assert b"line 2: text has" in done.stderr
    assert b"1 of 3 lines failed" in done.stderr


def test_translates_as_it_is_told_to(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    model, tokenizer = (getattr(checkpoint.load(tiny_checkpoint), part) for part in ("model", "tokenizer"))
    source = torch.tensor(tokenizer.source("Hello there.", "de"))
    rules = ["--min-tokens", "3", "--max-tokens", "9", "--no-repeat-ngram", "2"]
    searched = {"min_tokens": 3, "max_tokens": 9, "no_repeat_ngram": 2}

    beams = ["--beam-size", "4", "--length-penalty", "0.5"]
    done = dragoman("translate", "--bundle", tiny_bundle, *rules, *beams, given=b"Hello there.\n")
    best, *_ = beam(model, source, beam_size=4, length_penalty=0.5, **searched)
    assert done.stdout.decode() == f"{one_line(tokenizer.decode(best.tokens))}\n"

    draws = ["--temperature", "1.5", "--top-k", "40", "--top-p", "0.9"]
    given = b"Hello there.\nHello there.\n"
    done = dragoman("translate", "--bundle", tiny_bundle, *rules, *draws, "--seed", "5", given=given)
    drawn = [sample(model, source, temperature=1.5, top_k=40, top_p=0.9, seed=5 + n, **searched) for n in range(2)]
    assert done.stdout.decode() == "".join(f"{one_line(tokenizer.decode(each.tokens))}\n" for each in drawn)

    first = dragoman("translate", "--bundle", tiny_bundle, *rules, *draws, given=given)
    [seed] = re.findall(r"drawing with --seed (\d+)", first.stderr.decode())
    again = dragoman("translate", "--bundle", tiny_bundle, *rules, *draws, "--seed", seed, given=given)
    assert first.stdout == again.stdout


def one_line(text: str) -> str:
    return " ".join(text.splitlines())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--beam-size", "0"], "--beam-size: Input should be greater than or equal to 1, not 0"),
        (["--beam-size", "17"], "beam_size: is 17; the limit is 16"),
        (["--seed", "3"], "--seed is for drawing translations: give --temperature too"),
        (["--temperature", "9"], "--temperature: Input should be less than or equal to 2, not 9.0"),
        (["--temperature", "1", "--seed", "3", "--beam-size", "4"], "sampling: takes a beam_size of 1, not 4"),
    ],
)
def test_an_option_that_cannot_be_met_is_one_clear_message(tiny_bundle: Path, arguments: list[str], said: str) -> None:
    done = dragoman("translate", "--bundle", tiny_bundle, *arguments, given=b"One.\nTwo.\n")
    assert (done.returncode, done.stdout) == (1, b"")
    assert said in done.stderr.decode()
    assert done.stderr.decode().count("\n") == 1


def test_input_that_is_not_utf8_is_refused_with_its_line(tiny_bundle: Path) -> None:
    done = dragoman("translate", "--bundle", tiny_bundle, given=b"One.\n\xff\n")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"line 2 is not UTF-8: invalid start byte at byte 1\n"


def test_encodes_lines_as_json_lists(tiny_bundle: Path) -> None:
    done = dragoman("encode", "--bundle", tiny_bundle, given=b"One.\n\nThree.\n")
    first, blank, third = map(json.loads, done.stdout.decode().splitlines())
    assert len(first) == len(third) == 32
    assert blank is None


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--bundle", "/nonexistent"], {}, "manifest.json is missing"),
        (["--rows", "0"], {}, "setting rows: Input should be greater than 0, not 0"),
        ([], {"DRAGOMAN_PORT": "abc"}, "setting port: "),
        ([], {"DRAGOMAN_PROT": "1"}, "unknown in the environment: DRAGOMAN_PROT"),
        (["--gpus", "1"], {}, "CUDA"),
    ],
)
def test_a_wrong_setting_is_one_clear_message(arguments: list[str], environment: dict[str, str], said: str) -> None:
    done = dragoman("translate", *arguments, given=b"One.\n", **environment)
    assert done.returncode == 1
    assert said in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_a_second_copy_on_a_port_is_told_in_one_line(service: str) -> None:
    done = dragoman("serve", "--port", service.rsplit(":", 1)[1])
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert "Address already in use; choose another with --port" in done.stderr.decode()


def test_a_signal_during_the_start_ends_it(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "serving.cli", "serve", "--port", str(free_port()), "--bundle", str(tiny_bundle)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    assert "starting tiny" in process.stdout.readline()
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said.splitlines()[-1] == "stopped"
    assert "Traceback" not in said


def test_lists_and_cuts_out_attention(tiny_bundle: Path, tmp_path: Path) -> None:
    listed = dragoman("export", "--list", tiny_bundle).stdout.decode()
    assert "decoder  decoder.1.cross  CrossAttention, layer 1, 4 heads" in listed
    assert "query [rows, 1, 32]" in listed
    done = dragoman("export", tiny_bundle, tmp_path / "one.onnx", "--subgraph", "decoder.1.cross")
    assert done.returncode == 0
    assert (tmp_path / "one.onnx").stat().st_size
    wrong = dragoman("export", tiny_bundle, tmp_path / "two.onnx", "--subgraph", "decoder.9.cross")
    assert wrong.returncode == 1
    assert "decoder.1.cross" in wrong.stderr.decode()


def test_exports_and_prints_what_the_gate_measured(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = dragoman("export", tiny_checkpoint, tmp_path / "bundle", "--precision", "fp32", "--attention", "standard")
    assert done.returncode == 0, done.stderr
    assert "fp32, standard attention" in done.stdout.decode()
    refused = dragoman("export", tiny_checkpoint, tmp_path / "bundle", "--precision", "int4")
    assert refused.stderr.decode() == "--precision is 'int4'; it takes fp32 or int8\n"


def test_evaluates_bundle_and_checkpoint_alike_with_a_beam(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    data = tmp_path / "pairs.tsv"
    data.write_text("One cat.\tEine Katze.\ttest\nTwo dogs.\tZwei Hunde.\ttest\n", encoding="utf-8")
    written = []
    for number, model in enumerate((tiny_bundle, tiny_checkpoint)):
        output = tmp_path / str(number)
        arguments = ["--data", data, "--output", output, "--beam-size", "3", "--length-penalty", "0.2"]
        done = dragoman("evaluate", model, *arguments)
        assert done.returncode == 0, done.stderr
        assert ("confidence" in json.loads(done.stdout.decode().splitlines()[-1])) == (model == tiny_bundle)
        written.append((output / "en-de.txt").read_text(encoding="utf-8"))
    assert written[0] == written[1]
    assert written[0].strip()
    refused = dragoman("evaluate", tiny_bundle, "--data", data, "--beam-size", "17")
    assert refused.returncode == 1
    assert refused.stderr.decode().strip() == (
        "beam_size: is 17; the limit is 16, the lesser of the service's settings max_beam and rows"
    )
    for arguments in (["--pair", "de-en"], ["--languages", "en-fr"]):
        refused = dragoman("evaluate", tiny_bundle, "--data", data, *arguments)
        assert refused.returncode == 1
        assert refused.stderr.decode().strip() == f"the model knows en-de; not {arguments[1]}"


def test_evaluates_a_bundle_in_every_direction_it_knows(tmp_path: Path) -> None:
    data, output = tmp_path / "pairs.tsv", tmp_path / "texts"
    data.write_text("Open the file.\tÖffnen Sie die Datei.\ttest\nSave it.\tSpeichern.\ttest\n", encoding="utf-8")
    done = dragoman("evaluate", SHIPPED, "--data", data, "--output", output)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith("{")]
    assert [each["direction"] for each in found] == ["en-de", "de-en"]
    assert all(-1 <= each["confidence"] <= 1 for each in found)
    texts = [(output / f"{each['direction']}.txt").read_text(encoding="utf-8") for each in found]
    assert "Datei" in texts[0]
    assert "file" in texts[1]


def test_evaluates_with_placeholders_in_place_of_values(tmp_path: Path) -> None:
    data = tmp_path / "pairs.tsv"
    data.write_text("Open file 7.\tÖffnen Sie Datei 7.\nSave it.\tSpeichern.\n", encoding="utf-8")
    arguments = ["--data", data, "--pair", "en-de", "--output", tmp_path, "--placeholder", "{name}"]
    done = dragoman("evaluate", SHIPPED, *arguments, "--placeholder", "%s")
    assert done.returncode == 0, done.stderr
    [found] = [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith("{")]
    [text] = (tmp_path / "en-de.txt").read_text(encoding="utf-8").splitlines()
    assert (found["pairs"], found["placeholders_kept"]) == (1, float("%s" in text or "{name}" in text))
    assert "7" not in text
    for blank, said in ((" ", "--placeholder is blank"), ("%s", "no pairs to translate that have a number or a name")):
        data.write_text("Save it.\tSpeichern.\n", encoding="utf-8")
        refused = dragoman("evaluate", SHIPPED, "--data", data, "--placeholder", blank)
        assert refused.returncode == 1
        assert said in refused.stderr.decode()


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


TINY = ["vocabulary=800", "width=32", "heads=4", "feed_forward=64", "encoder_layers=1", "decoder_layers=1", "norm=pre"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
    assert sorted(file.name for file in (tmp_path / "texts").iterdir()) == ["de-en.txt", "en-de.txt"]
    loaded = checkpoint.load(run / "checkpoint")
    german = [pair.target for pair in read_pairs(data)[:3]]
    expected = dict(translate(loaded.model, loaded.tokenizer, german, "en"))
    found = (tmp_path / "texts" / "de-en.txt").read_text(encoding="utf-8").splitlines()
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
