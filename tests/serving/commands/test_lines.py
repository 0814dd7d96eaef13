import json
import re
from pathlib import Path

import pytest
import torch

from model import checkpoint
from model.search import beam, sample
from tests.service import dragoman


def test_translates_lines_in_order_and_keeps_blank_ones(tiny_bundle: Path) -> None:
    lines = [f"Line number {number}." for number in range(40)]
    given = "\n".join([*lines[:20], "", " ", *lines[20:]]).encode()
    together = dragoman("translate", "--bundle", tiny_bundle, given=given)
    assert together.returncode == 0
    written = together.stdout.decode().split("\n")
    assert written[20:22] == ["", ""]
    assert written[-1] == ""
    assert len(written) == 43
    named = ["--source", "EN", "--target", "de_DE"]
    again = dragoman("translate", "--bundle", tiny_bundle, *named, given=b"Line number 7.\n").stdout.decode()
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


def test_encodes_with_the_pooling_that_is_asked_for(tiny_bundle: Path) -> None:
    default, attention, mean = (
        dragoman("encode", "--bundle", tiny_bundle, *pooling, given=b"One.\n").stdout
        for pooling in ([], ["--pooling", "attention"], ["--pooling", "mean"])
    )
    assert default == attention != mean
    refused = dragoman("encode", "--bundle", tiny_bundle, "--pooling", "max", given=b"One.\nTwo.\n")
    assert refused.stderr.decode() == "--pooling is 'max'; it takes attention or mean\n"


def test_encodes_lines_as_json_lists(tiny_bundle: Path) -> None:
    done = dragoman("encode", "--bundle", tiny_bundle, given=b"One.\n\nThree.\n")
    first, blank, third = map(json.loads, done.stdout.decode().splitlines())
    assert len(first) == len(third) == 32
    assert blank is None
