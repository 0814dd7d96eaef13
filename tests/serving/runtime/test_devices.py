import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from export import ort
from export.bundle import ADMIT, BundleError, Manifest, locate, read_manifest
from export.ort import onnxruntime
from serving.pipeline import Pipeline
from serving.runtime.device_runtime import DeviceRuntime
from serving.runtime.devices import DeviceError, check_device, runtime_on
from serving.runtime.selfcheck import prove
from serving.settings import Settings
from tests.conftest import SMALL
from tests.serving.runtime.fake_device import FakeDevice, device_runtime
from tests.serving.runtime.fake_driver import FakeDriver, plant

GIB = 1 << 30
Given = tuple[int | None, int | None, bool]
"""What a device is made with: bytes of each graph, bytes of all arrays, and whether steps are recorded."""


@pytest.fixture
def fp16(lively_bundle: Callable[..., Path]) -> Path:
    return lively_bundle("fp16")


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[Given]:
    """Everything that a GPU takes, with a fake one; what each device that is made was given."""
    given: list[Given] = []

    class Device(FakeDevice):
        def __init__(
            self, graph_bytes: int | None = None, array_bytes: int | None = None, *, cuda_graphs: bool
        ) -> None:
            super().__init__()
            given.append((graph_bytes, array_bytes, cuda_graphs))

    monkeypatch.setitem(sys.modules, "serving.runtime.cuda", SimpleNamespace(CudaDevice=Device))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ort.CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "load_cuda", lambda: None)
    plant(monkeypatch, FakeDriver(memory=(80 * GIB,)))
    return given


def changed(bundle: Path, **changes: object) -> Manifest:
    return read_manifest(bundle).model_copy(update=changes)


def test_a_bundle_in_fp16_computes_on_a_gpu(fp16: Path, limits: list[Given]) -> None:
    manifest = read_manifest(fp16)
    runtime = runtime_on("cuda", fp16, manifest, 1)
    assert limits == [(None, None, False)]
    assert manifest.probes
    assert prove(runtime, runtime.batch(16), manifest.probes).probes == len(manifest.probes.probes)


def test_with_a_part_of_a_gpu_all_graphs_together_keep_within_it(fp16: Path, limits: list[Given]) -> None:
    for gpus in (0.5, 0.25):
        runtime_on("cuda", fp16, read_manifest(fp16), 1, gpus)
    (half, arrays, _), (quarter, _, _) = limits
    assert half
    assert quarter
    assert arrays
    # Arrays may take twice as much of the card as they have.
    assert 0.4 * 80 * GIB <= 5 * half + 2 * arrays <= 0.5 * 80 * GIB - GIB
    assert quarter < half / 2 < 1.1 * quarter


def test_memory_that_is_full_before_anything_is_proven_is_no_fault_of_the_bundle(
    fp16: Path, limits: list[Given], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU takes memory at the first run."""

    def full(*_: object) -> None:
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")

    monkeypatch.setattr(FakeDevice, "bind", lambda *_: full)
    with pytest.raises(DeviceError, match=r"^the GPU's memory is full"):
        Pipeline(Settings(bundle=fp16, gpus=1, rows=16))


def test_a_gpu_takes_the_memory_of_its_fullest_turn_before_it_serves(
    fp16: Path, limits: list[Given], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(fp16)
    encoded = list[tuple[int, int]]()
    encode = DeviceRuntime._encode

    def counted(runtime: DeviceRuntime, session: object, sources: list[list[int]]) -> object:
        encoded.append((len(sources), max(map(len, sources))))
        return encode(runtime, session, sources)

    monkeypatch.setattr(DeviceRuntime, "_encode", counted)
    Pipeline(Settings(bundle=fp16, gpus=1, rows=16, encode_tokens=2000)).close()
    longest = manifest.limits.source_tokens
    assert encoded[-1] == (2000 // longest, longest)


def test_steps_are_recorded_where_the_settings_say_so(fp16: Path, limits: list[Given]) -> None:
    Pipeline(Settings(bundle=fp16, gpus=1, rows=16, cuda_graphs=True)).close()
    assert limits == [(None, None, True)]


def test_too_small_a_part_of_a_gpu_is_refused(fp16: Path, limits: list[Given], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, FakeDriver(memory=(8 * GIB,)))
    with pytest.raises(
        DeviceError, match=r"gpus 0\.25 of a GPU with 8\.0 GiB leaves each graph 102 MiB, and this .* 256"
    ):
        runtime_on("cuda", fp16, read_manifest(fp16), 1, 0.25)
    assert limits == []


def test_int8_is_for_the_cpu(lively_bundle: Callable[..., Path]) -> None:
    bundle = locate(SMALL)
    with pytest.raises(DeviceError, match=r"is in int8, .* with dragoman export en-de-small FOLDER --precision fp16$"):
        check_device(bundle, read_manifest(bundle), "cuda")
    bundle = lively_bundle("int8")
    with pytest.raises(DeviceError, match=r"dragoman export CHECKPOINT FOLDER --precision fp16$"):
        check_device(bundle, read_manifest(bundle), "cuda")
    with pytest.raises(BundleError, match="export the checkpoint in fp16"):
        device_runtime(bundle)


def test_fp32_wants_standard_attention(lively_bundle: Callable[..., Path], limits: list[Given]) -> None:
    fused, standard = lively_bundle("fp32"), lively_bundle("fp32", "standard")
    check_device(standard, read_manifest(standard), "cuda")
    with pytest.raises(DeviceError, match=r"fp16 \(or --precision fp32 --attention standard\)$"):
        check_device(fused, read_manifest(fused), "cuda")


def test_bundles_of_earlier_versions_are_to_be_exported_again(fp16: Path, limits: list[Given]) -> None:
    graphs = read_manifest(fp16).graphs
    without = {name: spec for name, spec in graphs.items() if name != ADMIT}
    for manifest, said in (
        (changed(fp16, graphs=without), "without the graphs that a GPU needs"),
        (changed(fp16, probes=None), "without the probes"),
    ):
        with pytest.raises(DeviceError, match=f"{said}.*: export one for the GPU with dragoman export") as raised:
            check_device(fp16, manifest, "cuda")
        assert "\n" not in str(raised.value)


def test_no_gpu_computes_unproven(fp16: Path, limits: list[Given]) -> None:
    probes = read_manifest(fp16).probes
    assert probes
    with pytest.raises(DeviceError, match="no GPU translates unproven"):
        check_device(fp16, changed(fp16, probes=probes.model_copy(update={"probes": ()})), "cuda")


def test_a_package_without_cuda_is_refused_with_the_one_to_install(fp16: Path) -> None:
    with pytest.raises(DeviceError, match=r"has no CUDAExecutionProvider: .* pip install '\.\[gpu\]'"):
        runtime_on("cuda", fp16, read_manifest(fp16), 1)


def test_a_gpu_that_is_not_there_is_refused(fp16: Path, limits: list[Given], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="the replicas take 2 GPUs, and this process may use 1"):
        check_device(fp16, read_manifest(fp16), "cuda", count=2)
    plant(monkeypatch, None)
    with pytest.raises(DeviceError, match="no driver for NVIDIA's GPUs here"):
        check_device(fp16, read_manifest(fp16), "cuda")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("CUDA failure 2: out of memory ; GPU=0 ;\n  file=cuda_allocator.cc ; expr=cudaMalloc"),
            r"^the GPU's memory is full, or .* \(CUDA failure 2: out of memory ; GPU=0 ; file=",
        ),
        (RuntimeError("Failed to allocate memory for requested buffer of size 42"), "^the GPU's memory is full"),
        (RuntimeError("Available memory of 7 is smaller than requested bytes of 42"), "^the GPU's memory is full"),
        (OSError("libraries of CUDA are missing (libcublas.so.13)"), r"^the GPU cannot run the bundle: libraries"),
        (ValueError("first\nsecond" + 1000 * " more"), "^the GPU cannot run the bundle: first second more"),
    ],
)
def test_what_fails_on_the_gpu_is_one_line(
    fp16: Path, limits: list[Given], monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def session(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["serving.runtime.cuda"].CudaDevice, "session", session)
    with pytest.raises(DeviceError, match=said) as raised:
        runtime_on("cuda", fp16, read_manifest(fp16), 1)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_what_fails_on_the_cpu_keeps_its_traceback(fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def session(*_: object, **__: object) -> None:
        raise ValueError("planted")

    monkeypatch.setattr(ort, "session", session)
    with pytest.raises(ValueError, match=r"^planted$"):
        runtime_on("cpu", fp16, read_manifest(fp16), 1)
