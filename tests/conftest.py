"""What the tests share: the project's own sentences, a tiny random model, and a model that ships."""

import functools
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hypothesis
import psutil
import pytest
import torch

from export import verify
from export.exporter import Precision, export
from export.functions import Bodies
from model import checkpoint, pooling
from model.checkpoint import Checkpoint, CheckpointConfig
from model.config import ModelConfig
from model.pooling import AttentionPooling
from model.tokenizer import END, Tokenizer
from model.transformer import Transformer
from tests.processes import alive, kill, within
from tests.service import free_port, running

ROOT = Path(__file__).parent.parent
SENTENCES = ROOT / "loadtest" / "sentences.txt"
SMALL, BASE = "en-de-small", "en-de-base"

# On cores that others use too, torch with two threads waits for itself and is many times slower; so it would in the
# processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Other work on the machine is no fault.
hypothesis.settings.register_profile("dragoman", deadline=None)
hypothesis.settings.load_profile("dragoman")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data", type=Path, help="further pairs (tab-separated, .gz or not) for tests/test_acceptance.py")
    parser.addoption("--faults", type=int, default=20, help="how many tests/test_faults.py plants")
    parser.addoption("--seed", type=int, default=0, help="which they are")
    parser.addoption("--first", type=int, default=500, help="how many of them")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """Fails after the last test when a process that any of them has started is still there."""
    mark = uuid.uuid4().hex
    os.environ["TESTS_MARK"] = mark

    def left() -> dict[psutil.Process, str]:
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("TESTS_MARK") == mark and process.pid != os.getpid()
                # Python's own helper ends with this process.
                if ours and "multiprocessing.resource_tracker" not in (command := " ".join(process.cmdline())):
                    found.append((process, command))
            except psutil.Error:
                continue
        still = alive([process for process, _ in found])
        return {process: command for process, command in found if process in still}

    yield
    within(20, lambda: not left())
    found = left()
    kill(list(found), signal.SIGKILL)
    assert list(found.values()) == []


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """300 sentences of 1 to 112 words, awkward ones among them."""
    return SENTENCES.read_text(encoding="utf-8").rstrip("\n").split("\n")


@pytest.fixture(scope="session")
def tiny_tokenizer(sentences: list[str]) -> Tokenizer:
    return Tokenizer.train(sentences, 800)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return ModelConfig(
        vocabulary=800,
        width=32,
        heads=4,
        feed_forward=64,
        encoder_layers=2,
        decoder_layers=2,
        norm="pre",
        max_positions=128,
        dropout=0.0,
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: ModelConfig, tiny_tokenizer: Tokenizer
) -> Path:
    """A checkpoint of random weights."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    config = CheckpointConfig(name="tiny", pairs=(("en", "de"),), model=tiny_config)
    checkpoint.save(folder, config, dict(Transformer(tiny_config).named_parameters()), tiny_tokenizer)
    pooling.save(folder / checkpoint.POOLING, AttentionPooling(tiny_config.width, queries=3, narrow=8))
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The tiny checkpoint exported in fp32."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    export(tiny_checkpoint, folder, "fp32")
    return folder


@pytest.fixture(scope="session")
def lively_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: ModelConfig, tiny_tokenizer: Tokenizer
) -> Path:
    """Random weights again, but such that what is written looks back at source and target and ends at all lengths.

    The tiny one repeats itself, so its tokens would hardly tell if it were given another row's past.
    """
    torch.manual_seed(7)
    model = tiny_config.model_copy(update={"tied_embeddings": False})
    weights = {name: weight.detach() for name, weight in Transformer(model).named_parameters()}
    for name, weight in weights.items():
        if "norm" in name or name.endswith("bias"):
            weight += 0.1 * torch.randn_like(weight)
        elif "embedding" not in name and name != "projection.weight":
            weight *= 2
    weights["target_embedding.weight"] *= 0.3
    projection = weights["projection.weight"].normal_(std=0.2)
    weights["decoder_norm.bias"] += 2.2 * projection[END] / projection[END].norm()
    folder = tmp_path_factory.mktemp("checkpoint") / "lively"
    checkpoint.save(
        folder, CheckpointConfig(name="lively", pairs=(("en", "de"),), model=model), weights, tiny_tokenizer
    )
    pooling.save(folder / checkpoint.POOLING, AttentionPooling(model.width, queries=3, narrow=8))
    return folder


@pytest.fixture(scope="session")
def lively_bundle(tmp_path_factory: pytest.TempPathFactory, lively_checkpoint: Path) -> Callable[..., Path]:
    """The lively checkpoint's bundle in a precision, with fused bodies or others."""

    @functools.cache
    def bundle(precision: Precision, attention: Bodies = "fused") -> Path:
        folder = tmp_path_factory.mktemp("bundle") / f"lively-{precision}-{attention}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verify, "BATCH_SIZES", (7,))  # Enough tokens to judge by; the gate has tests of its own.
            export(lively_checkpoint, folder, precision, attention)
        return folder

    return bundle


@pytest.fixture(scope="session")
def small() -> Checkpoint:
    """The small checkpoint that ships."""
    return checkpoint.load(checkpoint.locate(SMALL))


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory, small: Checkpoint) -> Path:
    """The small checkpoint as CTranslate2 reads it."""
    from serving.bench.peer import convert  # only now: not everybody has CTranslate2

    folder = tmp_path_factory.mktemp("peer") / SMALL
    convert(small.model, folder)
    return folder


UNNEEDED = ("torch", "onnx", "onnxscript", "safetensors", "sacrebleu", "locust")
"""What serving must do without."""


def blocking(folder: Path, names: Sequence[str]) -> str:
    """A PYTHONPATH under which every process, Ray's workers too, fails to import ``names``."""
    (folder / "sitecustomize.py").write_text(f"import sys\nfor name in {tuple(names)}:\n    sys.modules[name] = None\n")
    return f"{folder}{os.pathsep}{ROOT}"


@pytest.fixture(scope="session")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH without what serving must not need."""
    return blocking(tmp_path_factory.mktemp("blocked"), UNNEEDED)


@pytest.fixture(scope="session")
def without_ray(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH without that and Ray."""
    return blocking(tmp_path_factory.mktemp("blocked"), (*UNNEEDED, "ray"))


@pytest.fixture(scope="session")
def service(without_torch: str) -> Iterator[str]:
    """The address of a real service with the small bundle that ships, which does without torch."""
    port = free_port()
    command = [sys.executable, "-m", "serving.cli", "serve", "--bundle", SMALL, "--port", str(port)]
    with running(command, port, PYTHONPATH=without_torch):
        yield f"http://127.0.0.1:{port}"
