"""The loop against the reference search, alone and in company, with the shapes of the CPU and with those of a GPU."""

import copy
import functools
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from model import checkpoint
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.search import beam
from model.tokenizer import END
from model.transformer import Transformer
from model.translate import search
from serving.bench.pytorch_device import Graphs
from serving.bench.pytorch_loop import LEVELS, PyTorchLoop
from serving.engine.decoding import Decoding

pytestmark = pytest.mark.slow

SOURCES = [[4, *range(first, first + length), END] for first, length in [(9, 2), (99, 30), (300, 1), (40, 60), (7, 12)]]
SOURCES += [[4, number, number * 7 % 800, END] for number in range(20, 60)]


@pytest.fixture(scope="module")
def model(lively_checkpoint: Path) -> Transformer:
    return checkpoint.load(lively_checkpoint).model


@pytest.fixture(params=[False, True], ids=["exact shapes", "static shapes"])
def static(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


@pytest.fixture
def loop(model: Transformer, static: bool) -> PyTorchLoop:
    loop = PyTorchLoop(copy.deepcopy(model), "fp32", "cpu", torch.get_num_threads(), sentences=64)
    loop.static = static
    return loop


def test_greedy_tokens_equal_the_reference(loop: PyTorchLoop, model: Transformer) -> None:
    expected = dict(search(model, SOURCES))
    limits = [model.config.default_limit(len(source)) for source in SOURCES]
    found = loop.translate(SOURCES, Decoding(max_tokens=max(limits)))
    assert [tokens[:limit] for tokens, limit in zip(found, limits, strict=True)] == [
        expected[index].tokens for index in range(len(SOURCES))
    ]
    alone = [loop.translate([source], Decoding(max_tokens=max(limits)))[0] for source in SOURCES[:6]]
    assert alone == found[:6]


@pytest.mark.parametrize("penalty", [1.0, 0.0])
def test_beam_tokens_equal_the_reference(loop: PyTorchLoop, model: Transformer, penalty: float) -> None:
    sources, decoding = SOURCES[:14], Decoding(max_tokens=40, beam_size=4, length_penalty=penalty)
    settings = {"max_tokens": 40, "beam_size": 4, "length_penalty": penalty}
    best = [beam(model, torch.tensor(source), **settings)[0] for source in sources]  # type: ignore[arg-type]
    assert {hypothesis.finished for hypothesis in best} == {True, False} or penalty == 0
    found = loop.translate(sources, decoding)
    assert found == [hypothesis.tokens for hypothesis in best]
    assert [loop.translate([source], decoding)[0] for source in sources[:6]] == found[:6]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_writes_exactly_as_many_tokens_as_it_is_told(loop: PyTorchLoop, beam_size: int) -> None:
    for count in (1, 35):  # the second needs more room than a first frame has
        found = loop.translate(SOURCES[:5], Decoding(max_tokens=count, min_tokens=count, beam_size=beam_size))
        assert [len(tokens) for tokens in found] == [count] * 5


def test_an_end_that_is_forbidden_is_the_references_second_choice(loop: PyTorchLoop, model: Transformer) -> None:
    decoding = Decoding(max_tokens=16, min_tokens=9, beam_size=3)
    best = [beam(model, torch.tensor(s), max_tokens=16, min_tokens=9, beam_size=3)[0] for s in SOURCES[:8]]
    assert loop.translate(SOURCES[:8], decoding) == [hypothesis.tokens for hypothesis in best]


def test_every_shape_of_model() -> None:
    torch.manual_seed(3)
    config = ModelConfig(
        vocabulary=90,
        width=32,
        heads=4,
        feed_forward=64,
        encoder_layers=2,
        decoder_layers=3,
        norm="post",
        activation="gelu",
        positions="learned",
        tied_embeddings=False,
        max_positions=64,
        dropout=0.0,
    )
    model = Transformer(config).eval()
    sources = [[7, 30, 31, 32, END], [5, 80, END], list(range(10, 40))]
    loop = PyTorchLoop(copy.deepcopy(model), "fp32", "cpu", torch.get_num_threads(), sentences=4)
    expected = dict(search(model, sources))
    assert loop.translate(sources, Decoding(max_tokens=16)) == [expected[index].tokens[:16] for index in range(3)]


def test_more_sentences_than_there_is_room_for_are_refused(loop: PyTorchLoop) -> None:
    with pytest.raises(ValueError, match="65 sentences at a time; there is room for 64"):
        loop.translate([[4, END]] * 65, Decoding(max_tokens=4))


def as_on_a_gpu(model: Transformer, sentences: int) -> PyTorchLoop:
    loop = PyTorchLoop(copy.deepcopy(model), "fp32", "cpu", torch.get_num_threads(), sentences)
    loop.static, loop._levels = True, deque(LEVELS)
    loop._forget()
    return loop


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_one_compilation_serves_all_shapes_and_making_ready_disturbs_nobody(
    small: Checkpoint, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a GPU's way but for the generated kernels, and for the graphs: a call is made as often as for them."""

    def capture(_: Graphs, call: Callable[[], None]) -> Callable[[], None]:
        for _ in range(3):
            call()
        return call

    # Whatever shapes the compiler meets, its backend is asked for a graph of its own only where one is specialised.
    backend = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    monkeypatch.setattr(Graphs, "capture", capture)
    loop = as_on_a_gpu(small.model, 64)
    sources = [source for source in (small.tokenizer.source(text, "de") for text in sentences) if len(source) <= 40]
    expected = PyTorchLoop(copy.deepcopy(small.model), "fp32", "cpu", torch.get_num_threads(), 64)
    for count in (40, 1, 24):
        for beam_size in (1, 4):
            decoding = Decoding(max_tokens=40, beam_size=beam_size)
            assert loop.translate(sources[:count], decoding) == expected.translate(sources[:count], decoding)
    assert loop.setting == LEVELS[0]
    # The encoder, and step and choice of each search; and these again for one sentence.
    assert backend.frame_count <= 2 * (1 + 2 + 2)
    assert len(loop._frames) >= 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_what_fails_on_a_gpu_is_left_out_and_said(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no graph\nfor you")

    monkeypatch.setattr(Graphs, "capture", fail)
    loop = as_on_a_gpu(model, 4)
    expected = dict(search(model, SOURCES[:4]))
    assert loop.translate(SOURCES[:4], Decoding(max_tokens=14)) == [expected[i].tokens[:14] for i in range(4)]
    failed = "failed: RuntimeError: no graph for you"
    assert loop.setting == f"eager; torch.compile and CUDA graphs {failed}; CUDA graphs {failed}"


@pytest.mark.slow
def test_a_trained_models_batches_shrink_and_the_rest_goes_on(
    small: Checkpoint, sentences: list[str], static: bool
) -> None:
    loop = PyTorchLoop(copy.deepcopy(small.model), "fp32", "cpu", torch.get_num_threads(), sentences=64)
    loop.static = static
    sources = [source for source in (small.tokenizer.source(text, "de") for text in sentences) if len(source) <= 16][
        :40
    ]
    expected = dict(search(small.model, sources))
    found = loop.translate(sources, Decoding(max_tokens=42))
    assert found == [expected[index].tokens for index in range(40)]
    found = loop.translate(sources, Decoding(max_tokens=42, beam_size=4))
    for index in range(0, 40, 3):
        assert found[index] == beam(small.model, torch.tensor(sources[index]), max_tokens=42, beam_size=4)[0].tokens
    for size in (1, 4):
        sizes = {shape.sentences for shape in loop._frames if shape.beam == size}
        assert sizes == {64, 32} if static else max(sizes) == 40 and min(sizes) < 10


def test_a_batch_that_outgrows_its_room_goes_on_in_a_larger_one(loop: PyTorchLoop) -> None:
    loop.translate(SOURCES[:4], Decoding(max_tokens=40, min_tokens=40))
    assert [shape.target for shape in loop._frames] == [32, 64]
