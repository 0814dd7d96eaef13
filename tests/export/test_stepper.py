from pathlib import Path

import numpy as np
import pytest

from export.bundle import read_manifest
from export.ort import SLOW_FUSIONS, onnxruntime
from export.stepper import Stepper

COPIED = "in-place optimization not activated"
"""What ONNX Runtime logs when it cannot write to a cache in place."""


@pytest.fixture
def stepper(each_bundle: Path) -> Stepper:
    """With a decoder that logs warnings."""
    stepper = Stepper(each_bundle, 16)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 2
    stepper.decoder = onnxruntime.InferenceSession(
        each_bundle / "decoder.onnx", options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_FUSIONS
    )
    stepper.encode(np.array([[5, 6, 7, 3], [9, 8, 3, 0]]), np.array([4, 3]))
    return stepper


def test_steps_write_to_the_caches_in_place(
    stepper: Stepper, each_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {name: cache.copy() for name, cache in stepper.caches.items()}
    for position in range(3):
        stepper.step(np.array([2, 7]), position)
    assert COPIED not in "".join(capfd.readouterr())
    for name, cache in stepper.caches.items():
        assert cache.dtype == read_manifest(each_bundle).cache.dtype
        changed = cache != before[name]
        if name.startswith("self"):
            assert changed[:, :, :3].mean() > 0.9
            assert not changed[:, :, 3:].any()
        else:
            assert not changed.any()


def test_a_cache_that_is_copied_would_be_told(
    stepper: Stepper, each_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    feeds = {"token": np.array([2, 2]), "position": np.zeros(2, np.int32), "lengths": stepper.lengths}
    feeds |= {"k": np.array([1]), "given": np.array([2, 2]), **stepper.caches}
    stepper.decoder.run(None, feeds)
    told = COPIED in "".join(capfd.readouterr())
    assert told == (read_manifest(each_bundle).attention == "standard")
