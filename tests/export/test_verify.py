import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from export import verify
from export.exporter import calibration
from export.parity import ParityReport
from export.quantize import Calibration, calibrate, quantized
from export.verify import BATCH_SIZES, SENTENCES, check, probes
from model import checkpoint
from model.checkpoint import Checkpoint
from model.translate import search


@pytest.fixture(scope="module")
def loaded(small_checkpoint: Path) -> Checkpoint:
    return checkpoint.load(small_checkpoint)


@pytest.fixture
def bundle(bundle_of: Callable[[str, str], Path]) -> Path:
    return bundle_of("fp32", "fused")


def report_on(
    bundle: Path, loaded: Checkpoint, change: Callable[[torch.nn.Module], object] = lambda model: None
) -> ParityReport:
    """The gate's report with a reference that ``change`` has altered."""
    reference = copy.deepcopy(loaded.model)
    with torch.no_grad():
        change(reference)
    return check(bundle, reference, reference, probes(loaded), "fp32")


def test_an_fp32_bundle_is_pytorch_to_the_last_digits(bundle: Path, loaded: Checkpoint) -> None:
    report = report_on(bundle, loaded)
    assert report.passed
    assert tuple(case.rows for case in report.cases) == BATCH_SIZES == (1, 2, 7, 32)
    for case in report.cases:
        assert case.rows <= case.tokens == case.tokens_equal <= case.rows * case.steps
        assert 1 <= case.lengths[0] <= case.lengths[1] <= loaded.config.model.max_positions
        assert 0 < case.log_probability_error <= 1e-4
        assert 0 < case.memory_error <= 1e-5
        assert 0 < case.attention_error <= 1e-5
    assert report.cases[-1].lengths[0] < report.cases[-1].lengths[1]
    assert report.equal_share == report.fp32_agreement == 1


@pytest.mark.parametrize(
    "name",
    [
        "source_embedding",
        "encoder.0.self_attention.value",
        "decoder.1.cross_attention.key",
        "decoder.1.feed_forward.outer",
        "decoder_norm",
    ],
)
def test_a_reference_with_one_other_weight_does_not_pass(bundle: Path, loaded: Checkpoint, name: str) -> None:
    report = report_on(bundle, loaded, lambda model: model.get_submodule(name).weight.view(-1)[-3:].add_(0.5))
    assert not report.passed


def test_an_inspection_graph_that_shows_other_weights_does_not_pass(
    bundle: Path, loaded: Checkpoint, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    model = onnx.load(damaged / "attention.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.name == "encoder.0.self")
    node.input[0], node.input[1] = node.input[1], node.input[0]
    (damaged / "attention.onnx").write_bytes(model.SerializeToString())
    report = report_on(damaged, loaded)
    assert not report.passed
    assert report.equal_share == 1


def test_an_int8_bundle_follows_the_model_that_rounds_as_it_does(
    bundle_of: Callable[[str, str], Path], loaded: Checkpoint
) -> None:
    reference = quantized(loaded.model, calibrate(loaded.model, calibration(loaded)))
    report = check(bundle_of("int8", "fused"), reference, loaded.model, probes(loaded), "int8")
    assert report.passed
    assert report.typical_error is not None
    assert report.typical_bound is not None
    assert report.typical_error <= report.typical_bound
    assert report.equal_share >= report.equal_share_bound
    assert report.fp32_agreement >= report.fp32_agreement_floor


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found._replace(
            inputs={name: rounding._replace(step=8 * rounding.step) for name, rounding in found.inputs.items()}
        ),
        lambda found: found._replace(caches={name: 64 * unit for name, unit in found.caches.items()}),
        lambda found: found._replace(caches={name: unit / 8 for name, unit in found.caches.items()}),
    ],
    ids=["inputs", "larger cache units", "smaller cache units"],
)
def test_an_int8_bundle_does_not_pass_for_a_model_with_other_roundings(
    bundle_of: Callable[[str, str], Path], loaded: Checkpoint, change: Callable[[Calibration], Calibration]
) -> None:
    reference = quantized(loaded.model, change(calibrate(loaded.model, calibration(loaded))))
    assert not check(bundle_of("int8", "fused"), reference, loaded.model, probes(loaded), "int8").passed


@pytest.mark.parametrize("bound", ["LOG_PROBABILITY_BOUND", "STATE_BOUND", "TYPICAL_BOUND"])
def test_every_bound_decides(bundle: Path, loaded: Checkpoint, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    assert report_on(bundle, loaded).passed
    monkeypatch.setattr(verify, bound, {"fp32": -1.0})
    assert not report_on(bundle, loaded).passed


def test_an_int8_bundle_does_not_pass_for_fp32(bundle_of: Callable[[str, str], Path], loaded: Checkpoint) -> None:
    assert not report_on(bundle_of("int8", "fused"), loaded).passed


EN_DE, DE_EN = ("en", "de"), ("de", "en")


@pytest.mark.parametrize("pairs", [(EN_DE,), (EN_DE, DE_EN), (DE_EN, EN_DE), (DE_EN,)])
def test_probes_are_of_every_pair_and_the_model_writes_those_that_are_not_english(
    loaded: Checkpoint, pairs: tuple[tuple[str, str], ...]
) -> None:
    both = dataclasses.replace(loaded, config=loaded.config.model_copy(update={"pairs": pairs}))
    tokenizer, limit = loaded.tokenizer, loaded.config.model.max_positions
    english = SENTENCES.read_text(encoding="utf-8").splitlines()
    found = dict(search(loaded.model, [tokenizer.source(text, "de")[:limit] for text in english]))
    german = [tokenizer.decode(found[index].tokens) for index in range(len(english))] if EN_DE in pairs else english
    assert probes(both) == [
        tokenizer.source(text, target)[:limit]
        for target, texts in (("de", english), ("en", german))
        for text in texts
        if target in {pair[1] for pair in pairs}
    ]
