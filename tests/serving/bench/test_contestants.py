import sys
from pathlib import Path

import pytest
import torch

from export.bundle import Manifest
from model import checkpoint
from model.search import beam
from model.transformer import Transformer
from model.translate import search
from serving.bench import contestants, subjects
from serving.bench.contestants import CHECKPOINT, Contestant, Entrant, Seat, enter
from serving.bench.subjects import prepare, write_bundle
from serving.engine.decoding import Decoding
from serving.runtime.device_runtime import DeviceRuntime
from tests.serving.runtime.fake_device import FakeDevice


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


def contestant(folder: Path, engine: str) -> Contestant:
    return enter(Entrant(engine, "fp32"), Seat(folder, "cpu", torch.get_num_threads(), rows=16))


@pytest.mark.parametrize("engine", ["dragoman", "pytorch"])
def test_tokens_equal_the_reference(folder: Path, model: Transformer, engine: str) -> None:
    expected, one = dict(search(model, SOURCES)), contestant(folder, engine)
    found = one.translate(SOURCES, Decoding(max_tokens=14))
    assert found == [expected[index].tokens[:14] for index in range(len(SOURCES))]
    found = one.translate(SOURCES, Decoding(max_tokens=12, beam_size=4))
    best = [beam(model, torch.tensor(source), max_tokens=12, beam_size=4)[0] for source in SOURCES]
    assert found == [hypothesis.tokens for hypothesis in best]


@pytest.mark.parametrize("engine", ["dragoman", "pytorch"])
def test_writes_exactly_as_many_tokens_as_it_is_told(folder: Path, engine: str) -> None:
    found = contestant(folder, engine).translate(SOURCES, Decoding(max_tokens=9, min_tokens=9))
    assert [len(tokens) for tokens in found] == [9] * len(SOURCES)


@pytest.mark.parametrize("bundle", ["fp16", "fp16-standard"])
def test_on_a_gpu_ours_computes_with_the_runtime_for_it(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: str
) -> None:
    ours = Entrant("dragoman", bundle)
    monkeypatch.setattr(subjects, "_sentences", lambda *_: SOURCES)  # they would be looked for on the GPU
    prepare(str(tiny_checkpoint), tmp_path / "any", [ours], tmp_path, 4, "cuda")
    devices = list[str]()

    def fake(device: str, folder: Path, manifest: Manifest, *_: object) -> DeviceRuntime:
        devices.append(device)
        return DeviceRuntime(folder, manifest, FakeDevice())

    monkeypatch.setattr(contestants, "unchecked_runtime", fake)
    one = enter(ours, Seat(tmp_path / "any", "cuda", threads=1, rows=16))
    for beam_size in (1, 4):
        found = one.translate(SOURCES, Decoding(max_tokens=9, min_tokens=9, beam_size=beam_size))
        assert [len(tokens) for tokens in found] == [9] * len(SOURCES)
    assert devices == ["cuda"]


def test_our_contestant_needs_no_torch(folder: Path) -> None:
    import subprocess

    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from serving.bench.contestants import Decoding, Entrant, Seat, enter\n"
        f"one = enter(Entrant('dragoman', 'fp32'), Seat(Path({str(folder)!r}), 'cpu', 1, 4))\n"
        "print(len(one.translate([[4, 5, 3]], Decoding(max_tokens=6, min_tokens=6))[0]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "6", done.stderr
