"""The graphs that move rows against the same in numpy, in place and beside rows that must not change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from export import ort
from export.bundle import ADMIT, REORDER, read_manifest

Array = NDArray[Any]
ROWS, BATCH = 7, 3


@pytest.fixture(params=["fp32", "fp16"])
def bundle(request: pytest.FixtureRequest, bundle_of: Callable[..., Path]) -> Path:
    return bundle_of(request.param, "standard")


def arrays_for(bundle: Path, graph: str) -> dict[str, Array]:
    """Random numbers for every cache of a ``graph``'s inputs."""
    manifest, random = read_manifest(bundle), np.random.default_rng(0)
    sizes = {"rows": ROWS, "batch": BATCH, "capacity": 17, "source": 17, "positions": 8}
    return {
        spec.name: random.normal(size=[sizes.get(size, size) for size in spec.shape]).astype(spec.dtype)
        for spec in manifest.graphs[graph].inputs
        if "_" in spec.name
    }


def run(bundle: Path, graph: str, caches: dict[str, Array], rows: dict[str, Array]) -> None:
    """With each cache bound as input and output."""
    session = ort.session(bundle / f"{graph}.onnx", 1)
    binding = session.io_binding()
    for name, array in (caches | rows).items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for output in session.get_outputs():
        array = caches[output.name.removesuffix("_out")]
        binding.bind_output(output.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    session.run_with_iobinding(binding)


def test_sources_come_into_their_rows_with_their_last_key_and_value_once_more(bundle: Path) -> None:
    caches = arrays_for(bundle, ADMIT)
    expected = {name: array.copy() for name, array in caches.items()}
    places = [(5, 2, 8), (0, 0, 3)]
    for name in [name for name in caches if name.startswith("cross")]:
        for row, index, length in places:
            source = caches[name.replace("cross", "encoded")][index]
            expected[name][row, :, :8] = source
            expected[name.replace("cross", "last")][row, 0] = source[:, length - 1].reshape(-1)
    row, index, length = np.array(places).T
    run(bundle, ADMIT, caches, {"row": row.copy(), "index": index.copy(), "last": length[:, None] - 1})
    for name, array in expected.items():
        np.testing.assert_array_equal(caches[name], array, err_msg=name)


def test_rows_are_copied_over_others_all_at_once(bundle: Path) -> None:
    caches = arrays_for(bundle, REORDER)
    assert set(caches) == {
        spec.name for spec in read_manifest(bundle).graphs["decoder"].inputs if spec.name.split("_")[0] in USES
    }
    origin, row = np.array([6, 6, 1, 0]), np.array([2, 3, 0, 1])
    expected = {name: array.copy() for name, array in caches.items()}
    for name, array in expected.items():
        array[row] = caches[name][origin]
    run(bundle, REORDER, caches, {"origin": origin, "row": row})
    for name, array in expected.items():
        np.testing.assert_array_equal(caches[name], array, err_msg=name)


USES = ("self", "cross", "last")


def test_int8_is_for_the_cpu_and_has_none(bundle_of: Callable[..., Path]) -> None:
    folder = bundle_of("int8", "fused")
    assert not {ADMIT, REORDER} & set(read_manifest(folder).graphs)
    assert not (folder / f"{ADMIT}.onnx").exists()
