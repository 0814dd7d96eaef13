"""What must hold for the model that ships, on the project's own sentences and on those of --data (the first --first).

pytest tests/test_acceptance.py --data test.tsv.gz --first 500
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from export.bundle import read_manifest
from model import checkpoint
from model.checkpoint import Checkpoint
from model.corpus import read_pairs
from model.translate import search
from serving.engine import Engine
from serving.job import Translated, translation
from serving.runtime import Runtime
from tests.conftest import PRETRAINED, SHIPPED
from tests.reference_int8 import Reference
from tests.service import fetch


@pytest.fixture(scope="module")
def texts(request: pytest.FixtureRequest, sentences: list[str]) -> list[str]:
    data = request.config.getoption("--data")
    further = [pair.source for pair in read_pairs(data)][: request.config.getoption("--first")] if data else []
    return [*sentences, *further]


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return checkpoint.load(PRETRAINED)


@pytest.fixture(scope="module")
def sources(texts: list[str], shipped: Checkpoint) -> list[list[int]]:
    """Whole texts, uncut: longer ones than the pipeline would pass to the engine."""
    ids = [shipped.tokenizer.source(text, "de") for text in texts]
    return [each for each in ids if len(each) <= shipped.config.model.max_positions]


def decoded(bundle: Path, sources: Sequence[list[int]]) -> list[Translated]:
    """All of ``sources`` through the engine, side by side."""
    manifest = read_manifest(bundle)
    engine = Engine(Runtime(bundle, manifest, 2), rows=32, encode_tokens=4096, queue_tokens=10**9)
    jobs = [
        translation(source, manifest.model.default_limit(len(source)), time.monotonic() + 600) for source in sources
    ]
    engine.submit(jobs)
    found = [job.future.result(timeout=600) for job in jobs]
    engine.stop()
    return found


def test_fp32_tokens_equal_pytorch_for_every_sentence(
    shipped: Checkpoint, shipped_fp32: Path, sources: list[list[int]]
) -> None:
    found = decoded(shipped_fp32, sources)
    differing = []
    for index, expected in search(shipped.model, sources, rows=16):
        if found[index].tokens != expected.tokens:
            differing.append((index, found[index].tokens, expected.tokens))
        else:
            np.testing.assert_allclose(found[index].log_probabilities, expected.log_probabilities, atol=1e-3)
    assert not differing


def test_int8_tokens_equal_the_rounding_reference_for_every_sentence(
    shipped: Checkpoint, sources: list[list[int]]
) -> None:
    reference = Reference(SHIPPED, shipped.model)
    differing = []
    for source, found in zip(sources, decoded(SHIPPED, sources), strict=True):
        tokens, scores = reference.greedy(source, shipped.config.model.default_limit(len(source)))
        if tokens != found.tokens:
            differing.append((source, tokens, found.tokens))
        else:
            np.testing.assert_allclose(found.log_probabilities, scores, atol=1e-3)
    assert not differing


def test_the_shipped_bundle_is_made_from_the_shipped_checkpoint(tmp_path: Path) -> None:
    from export.exporter import _checkpoint_hash

    assert read_manifest(SHIPPED).provenance.checkpoint_sha256 == _checkpoint_hash(PRETRAINED)


def test_lines_and_http_agree_alone_and_among_others(service: str, texts: list[str]) -> None:
    """The command over all lines, each text in a request of its own, and lists of 33 in requests side by side."""
    lines = [text for text in texts if not any(mark in text for mark in "\r\v\f\x85\u2028\u2029")]
    command = [sys.executable, "-m", "serving.cli", "translate"]
    done = subprocess.run(command, input="\n".join(lines).encode(), capture_output=True, check=True)
    by_command = done.stdout.decode().removesuffix("\n").split("\n")

    def ask(texts: list[str]) -> list[str]:
        answer = fetch(f"{service}/v1/translate", json.dumps({"text": texts}).encode())
        assert answer.status == 200, answer.content
        return [each["text"] for each in answer.json["translations"]]

    alone = [ask([line])[0] for line in lines]
    with ThreadPoolExecutor(8) as pool:
        lists = pool.map(ask, [lines[begin : begin + 33] for begin in range(0, len(lines), 33)])
    among_others = [text for texts in lists for text in texts]
    assert alone == among_others
    assert by_command == [" ".join(text.splitlines()) for text in alone]
