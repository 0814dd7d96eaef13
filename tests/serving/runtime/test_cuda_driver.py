import pytest

from serving.runtime.cuda_driver import DriverError, gpu_memory
from tests.serving.runtime.fake_driver import FakeDriver, plant


def test_every_gpu_is_found_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, FakeDriver(memory=(80 << 30, 16 << 30)))
    assert gpu_memory() == [80 << 30, 16 << 30]


@pytest.mark.parametrize("version", [13000, 13050, 14020])
def test_a_driver_as_new_as_the_library_or_newer_will_do(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    plant(monkeypatch, FakeDriver(version=version))
    assert len(gpu_memory()) == 1


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (None, r"no driver for NVIDIA's GPUs here \(libcuda.so.1 cannot be loaded\)"),
        (FakeDriver(started=100), "sees no GPU here"),
        (FakeDriver(memory=()), "sees no GPU here"),
        (FakeDriver(started=999), r"cannot be started: unknown error \(CUDA error 999\)"),
        (FakeDriver(version=12040), "for CUDA 12.4, and this onnxruntime-gpu for CUDA 13: install a newer driver"),
    ],
)
def test_what_keeps_a_gpu_from_use_is_one_line(
    monkeypatch: pytest.MonkeyPatch, driver: FakeDriver | None, said: str
) -> None:
    plant(monkeypatch, driver)
    with pytest.raises(DriverError, match=said) as raised:
        gpu_memory()
    assert "\n" not in str(raised.value)
