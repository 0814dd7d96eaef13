import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from export import verify
from export.agreement import NEAR_TIE, Agreement
from export.exporter import calibration
from export.parity import ParityReport
from export.quantize import Calibration, calibrate, quantized
from export.verify import BATCH_SIZES, SENTENCES, check, gate_sources
from model import checkpoint
from model.checkpoint import Checkpoint
from model.translate import search


@pytest.fixture(scope="module")
def loaded(small_checkpoint: Path) -> Checkpoint:
    return checkpoint.load(small_checkpoint)


@pytest.fixture
def bundle(bundle_of: Callable[[str, str], Path]) -> Path:
    return bundle_of("fp32", "fused")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer sentences: enough where anything at all is to be found."""
    monkeypatch.setattr(verify, "BATCH_SIZES", (2,))


@pytest.fixture
def half_bundle(bundle_of: Callable[[str, str], Path]) -> Path:
    return bundle_of("fp16", "fused")


def report_on(
    bundle: Path,
    loaded: Checkpoint,
    change: Callable[[torch.nn.Module], object] = lambda model: None,
    precision: str = "fp32",
) -> ParityReport:
    """The gate's report with a reference that ``change`` has altered."""
    reference = copy.deepcopy(loaded.model)
    with torch.no_grad():
        change(reference)
    return check(bundle, reference, reference, gate_sources(loaded), precision)


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


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
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
def test_a_reference_with_one_other_weight_does_not_pass(
    bundle_of: Callable[[str, str], Path], loaded: Checkpoint, precision: str, name: str
) -> None:
    def change(model: torch.nn.Module) -> None:
        model.get_submodule(name).weight.view(-1)[-3:].add_(0.5)

    assert not report_on(bundle_of(precision, "fused"), loaded, change, precision).passed


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_inspection_graph_that_shows_other_weights_does_not_pass(
    bundle_of: Callable[[str, str], Path], loaded: Checkpoint, tmp_path: Path, precision: str
) -> None:
    damaged = Path(shutil.copytree(bundle_of(precision, "fused"), tmp_path / "bundle"))
    model = onnx.load(damaged / "attention.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.name == "encoder.0.self")
    node.input[0], node.input[1] = node.input[1], node.input[0]
    (damaged / "attention.onnx").write_bytes(model.SerializeToString())
    report = report_on(damaged, loaded, precision=precision)
    assert not report.passed
    assert report.equal_share == 1


@pytest.mark.parametrize("attention", ["standard", "fused"])
def test_an_fp16_bundle_follows_fp32_but_for_near_ties(
    bundle_of: Callable[[str, str], Path], loaded: Checkpoint, attention: str
) -> None:
    report = report_on(bundle_of("fp16", attention), loaded, precision="fp16")
    assert report.passed
    assert report.reference == "PyTorch, fp32"
    assert report.near_tie == NEAR_TIE == 0.02
    assert report.long is not None
    cases = [*report.cases, report.long]
    assert report.near_ties == sum(case.near_ties for case in cases)
    assert report.tokens_differing == sum(case.tokens - case.tokens_equal for case in cases)
    assert report.tokens_differing == sum(case.tokens_exempt for case in cases) <= report.near_ties
    assert report.equal_share == 1
    assert 0 < report.best_error <= report.best_bound == 0.002
    assert report.best_error <= report.typical_error <= report.log_probability_bound
    assert all(1e-5 < case.memory_error <= report.state_bound for case in report.cases)
    assert all(1e-6 < case.attention_error <= report.state_bound for case in report.cases)


@pytest.mark.usefixtures("brief")
def test_only_fp16_exempts_near_ties(bundle: Path, loaded: Checkpoint) -> None:
    report = report_on(bundle, loaded)
    assert report.near_tie is report.near_ties is report.tokens_differing is None
    assert all(case.near_ties is case.tokens_exempt is None for case in report.cases)


@pytest.mark.parametrize(
    ("gap", "passes"),
    [(0.01, True), (0.03, False)],
)
def test_a_near_tie_is_exempt_and_a_clear_difference_is_not(
    half_bundle: Path, loaded: Checkpoint, monkeypatch: pytest.MonkeyPatch, gap: float, passes: bool
) -> None:
    """At every fifth step the graph likes the reference's second best token better, which lies ``gap`` behind."""
    agreement = verify.agreement

    def planted(computed: torch.Tensor, expected: torch.Tensor, inside: torch.Tensor) -> Agreement:
        first, second = expected.topk(2, dim=-1).indices.unbind(-1)
        for row, step in torch.nonzero(inside)[::5].tolist():
            expected[row, step, second[row, step]] = expected[row, step, first[row, step]] - gap
            computed[row, step] = expected[row, step]
            computed[row, step, second[row, step]] += gap + 0.001
        return agreement(computed, expected, inside)

    monkeypatch.setattr(verify, "agreement", planted)
    monkeypatch.setattr(verify, "FP32_AGREEMENT_FLOOR", {"fp16": 0.0})
    report = report_on(half_bundle, loaded, precision="fp16")
    differing = sum(case.tokens - case.tokens_equal for case in report.cases)
    assert differing >= sum(case.tokens for case in report.cases) // 5
    assert report.passed == passes
    assert (report.equal_share == 1) == passes


@pytest.mark.usefixtures("brief")
def test_a_graph_that_computes_nan_does_not_pass(half_bundle: Path, loaded: Checkpoint, tmp_path: Path) -> None:
    for graph, node in (("decoder", "decoder.1.feed_forward.sum"), ("encoder", "encoder.0.self")):
        folder = Path(shutil.copytree(half_bundle, tmp_path / graph))
        model = onnx.load(folder / f"{graph}.onnx", load_external_data=False)
        place, damaged = next((place, part) for place, part in enumerate(model.graph.node) if part.name == node)
        result, damaged.output[0] = damaged.output[0], "planted"
        model.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float16), "planted.nan"))
        model.graph.node.insert(place + 1, helper.make_node("Add", ["planted", "planted.nan"], [result]))
        (folder / f"{graph}.onnx").write_bytes(model.SerializeToString())
        assert not report_on(folder, loaded, precision="fp16").passed


def test_an_int8_bundle_follows_the_model_that_rounds_as_it_does(
    bundle_of: Callable[[str, str], Path], loaded: Checkpoint
) -> None:
    reference = quantized(loaded.model, calibrate(loaded.model, calibration(loaded)))
    report = check(bundle_of("int8", "fused"), reference, loaded.model, gate_sources(loaded), "int8")
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
    assert not check(bundle_of("int8", "fused"), reference, loaded.model, gate_sources(loaded), "int8").passed


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("bound", ["LOG_PROBABILITY_BOUND", "STATE_BOUND", "TYPICAL_BOUND", "BEST_BOUND"])
def test_every_bound_decides(
    bundle_of: Callable[[str, str], Path],
    loaded: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
    precision: str,
) -> None:
    bundle = bundle_of(precision, "fused")
    assert report_on(bundle, loaded, precision=precision).passed
    monkeypatch.setattr(verify, bound, {precision: -1.0})
    assert not report_on(bundle, loaded, precision=precision).passed


def test_an_int8_bundle_does_not_pass_for_fp32(bundle_of: Callable[[str, str], Path], loaded: Checkpoint) -> None:
    assert not report_on(bundle_of("int8", "fused"), loaded).passed


@pytest.mark.usefixtures("brief")
def test_an_fp16_bundle_does_not_pass_for_fp32(half_bundle: Path, loaded: Checkpoint) -> None:
    assert not report_on(half_bundle, loaded).passed


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
    assert gate_sources(both) == [
        tokenizer.source(text, target)[:limit]
        for target, texts in (("de", english), ("en", german))
        for text in texts
        if target in {pair[1] for pair in pairs}
    ]
