import sys
from pathlib import Path

import pytest
import torch

from model import checkpoint
from model.search import beam
from model.transformer import Transformer
from model.translate import search
from serving.bench.contestants import CHECKPOINT, Contestant, Dragoman, PyTorch, enter
from serving.bench.subjects import write_bundle
from serving.engine.decoding import Decoding


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Transformer:
    return checkpoint.load(tiny_checkpoint).model


@pytest.fixture(scope="module")
def folder(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contestants")
    write_bundle(model, folder / "fp32", "fp32")
    torch.save(model, folder / CHECKPOINT)
    return folder


SOURCES = [[4, 300, 301, 3], [4, 17, 3], [4, *range(100, 130), 3], [4, 3]]


@pytest.mark.parametrize("engine", ["dragoman", "pytorch"])
def test_greedy_tokens_equal_the_reference(folder: Path, model: Transformer, engine: str) -> None:
    contestant: Contestant = enter(engine, "fp32", folder, 1, 16, split=False)
    expected = dict(search(model, SOURCES))
    found = contestant.translate(SOURCES, Decoding(max_tokens=14))
    assert found == [expected[index].tokens[:14] for index in range(len(SOURCES))]


@pytest.mark.parametrize("engine", ["dragoman", "pytorch"])
def test_writes_exactly_as_many_tokens_as_it_is_told(folder: Path, engine: str) -> None:
    contestant = enter(engine, "fp32", folder, 1, 16, split=False)
    found = contestant.translate(SOURCES, Decoding(max_tokens=9, min_tokens=9))
    assert [len(tokens) for tokens in found] == [9] * len(SOURCES)


def test_dragomans_beam_equals_the_reference(folder: Path, model: Transformer) -> None:
    decoding = Decoding(max_tokens=12, beam_size=4)
    found = Dragoman(folder / "fp32", 1, rows=16).translate(SOURCES, decoding)
    best = [beam(model, torch.tensor(source), max_tokens=12, beam_size=4)[0] for source in SOURCES]
    assert found == [hypothesis.tokens for hypothesis in best]


def test_pytorch_refuses_a_beam(model: Transformer) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match="greedily only"):
        PyTorch(model, threads).translate(SOURCES, Decoding(max_tokens=12, beam_size=4))


def test_our_contestant_needs_no_torch(folder: Path) -> None:
    import subprocess

    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from serving.bench.contestants import Decoding, enter\n"
        f"one = enter('dragoman', 'fp32', Path({str(folder)!r}), 1, 4, False)\n"
        "print(len(one.translate([[4, 5, 3]], Decoding(max_tokens=6, min_tokens=6))[0]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "6", done.stderr
