"""What must hold for the models that ship, on the project's own sentences and on those of --data (the first --first).

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
import onnx
import pytest
import torch

from export import verify
from export.bundle import GRAPHS, locate, read_manifest
from export.exporter import calibration, export
from export.quantize import Calibration, calibrate, quantized
from export.verify import gate_sources
from model import checkpoint
from model.checkpoint import Checkpoint
from model.corpus import pad
from model.pairs import read_pairs
from model.tokenizer import END, START
from model.transformer import Transformer
from serving.engine.decoding import Decoding
from serving.engine.engine import Engine
from serving.engine.jobs import translation
from serving.engine.search import Hypothesis
from serving.runtime.cpu import CpuRuntime
from tests.conftest import BASE, SMALL
from tests.service import fetch


@pytest.fixture(scope="module")
def texts(request: pytest.FixtureRequest, sentences: list[str]) -> list[str]:
    data = request.config.getoption("--data")
    further = [pair.source for pair in read_pairs(data)][: request.config.getoption("--first")] if data else []
    return [*sentences, *further]


@pytest.fixture(scope="module", params=[SMALL, pytest.param(BASE, marks=pytest.mark.slow)])
def name(request: pytest.FixtureRequest) -> str:
    """A model that ships."""
    return str(request.param)


@pytest.fixture(scope="module")
def shipped(name: str) -> Checkpoint:
    return checkpoint.load(checkpoint.locate(name))


@pytest.fixture(scope="module")
def bundle(name: str) -> Path:
    """As it ships, int8."""
    return locate(name)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """The same checkpoint exported in fp32."""
    folder = tmp_path_factory.mktemp("fp32") / name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "BATCH_SIZES", (7,))  # every token it writes is compared afterwards
        export(checkpoint.locate(name), folder, "fp32")
    return folder


@pytest.fixture(scope="module")
def calibrated(shipped: Checkpoint) -> Calibration:
    """What the bundle's roundings and cache units must be."""
    return calibrate(shipped.model, calibration(shipped))


@pytest.fixture(scope="module")
def sources(texts: list[str], shipped: Checkpoint) -> list[list[int]]:
    """Whole texts, uncut: longer ones than the pipeline would pass to the engine; and what the gate reads."""
    ids = [*(shipped.tokenizer.source(text, "de") for text in texts), *gate_sources(shipped)]
    return [each for each in ids if len(each) <= shipped.config.model.max_positions]


def decoded(bundle: Path, sources: Sequence[list[int]]) -> list[Hypothesis]:
    """All of ``sources`` greedily through the engine, side by side."""
    manifest = read_manifest(bundle)
    runtime = CpuRuntime(bundle, manifest, 2)
    engine = Engine(runtime, runtime.batch(32), encode_tokens=4096, queue_tokens=10**9, share=32)
    jobs = [
        translation(source, Decoding(manifest.model.default_limit(len(source))), time.monotonic() + 600)
        for source in sources
    ]
    engine.submit(jobs)
    found = [job.future.result(timeout=600).hypotheses[0] for job in jobs]
    engine.stop()
    return found


@torch.inference_mode()
def taught(model: Transformer, sources: Sequence[list[int]], found: Sequence[Hypothesis]) -> list[tuple[bool, float]]:
    """Of every token of ``found``: whether ``model`` likes it best after those before it, and how far its
    log-probability is from what ``model`` gives it.

    If it likes every token best, greedy search with it writes the very same.
    """
    verdicts: list[tuple[bool, float]] = []
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]) + len(found[index].tokens))
    for begin in range(0, len(order), 8):
        rows = order[begin : begin + 8]
        read = [sources[row] for row in rows]
        written = [[START, *found[row].tokens[:-1]] for row in rows]
        lengths = torch.tensor([len(ids) for ids in read])
        logits = model(torch.from_numpy(pad(read)).long(), lengths, torch.from_numpy(pad(written)).long())
        for row, likely in zip(rows, logits.log_softmax(-1), strict=True):
            tokens = found[row].tokens
            likely = likely[: len(tokens)]
            errors = np.abs(likely[range(len(tokens)), tokens].numpy() - found[row].log_probabilities)
            verdicts += zip(likely.argmax(-1).numpy() == tokens, errors.tolist(), strict=True)
    return verdicts


def test_fp32_tokens_equal_pytorch_for_every_sentence(
    shipped: Checkpoint, fp32: Path, sources: list[list[int]]
) -> None:
    found = decoded(fp32, sources)
    for source, each in zip(sources, found, strict=True):
        assert each.tokens[-1] == END or len(each.tokens) == shipped.config.model.default_limit(len(source))
        assert END not in each.tokens[:-1]
    verdicts = taught(shipped.model, sources, found)
    assert all(best for best, _ in verdicts)
    assert max(error for _, error in verdicts) < 1e-3


EXACT = {SMALL: 0.8, BASE: 0.7}
"""Shares of the tokens whose log-probabilities agree to 1e-5 at least: the more layers, the more edges are met."""


@pytest.mark.slow
def test_int8_tokens_equal_the_model_that_rounds_so_too_but_for_what_lies_on_an_edge(
    name: str, shipped: Checkpoint, bundle: Path, sources: list[list[int]], calibrated: Calibration
) -> None:
    """The two runtimes' LayerNorm and softmax differ in the last bit. Where that bit decides between two int8 steps the
    results part by up to tenths of a nat (0.34 in en-de-small, 0.17 in en-de-base); everywhere else they agree to 1e-6.
    On the project's own sentences 99.74 % and 99.90 % of the tokens were equal (the fp32 models like 96.7 % and 99.1 %
    of the same tokens).
    """
    found = decoded(bundle, sources)
    equal, errors = zip(*taught(quantized(shipped.model, calibrated), sources, found), strict=True)
    assert np.mean(equal) > 0.995
    assert np.quantile(errors, EXACT[name]) < 1e-5
    assert max(errors) < 0.5


@pytest.mark.slow
def test_the_bundle_is_made_from_the_checkpoint(name: str, bundle: Path, calibrated: Calibration) -> None:
    """Its roundings and cache units too, which were found on another machine or with another number of threads."""
    from export.exporter import _checkpoint_hash

    assert read_manifest(bundle).provenance.checkpoint_sha256 == _checkpoint_hash(checkpoint.locate(name))
    initializers = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for name in GRAPHS
        for tensor in onnx.load(bundle / f"{name}.onnx").graph.initializer
        if tensor.name.endswith((".step", ".cache_unit"))
    }
    steps = {float(array) for name, array in initializers.items() if name.endswith(".step")}
    assert steps == {rounding.step for rounding in calibrated.inputs.values()}
    units = {name: array.ravel().tolist() for name, array in initializers.items() if name.endswith(".cache_unit")}
    assert units == {
        f"{name.replace('_attention', '')}.cache_unit": unit.tolist() for name, unit in calibrated.caches.items()
    }


def test_lines_and_http_agree_alone_and_among_others(service: str, texts: list[str]) -> None:
    """The command over all lines, each text in a request of its own, and lists of 33 in requests side by side."""
    lines = [text for text in texts if not any(mark in text for mark in "\r\v\f\x85\u2028\u2029")]
    command = [sys.executable, "-m", "serving.cli", "translate", "--bundle", SMALL]
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
