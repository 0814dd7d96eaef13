"""The graphs that read one text at a time: attention to look at, and sentence vectors."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.ort import onnxruntime

Array = NDArray[Any]


def attention(session: onnxruntime.InferenceSession, source: list[int], target: list[int]) -> dict[str, Array]:
    """What ``attention.onnx`` computes of one pair; see `serving.runtime.interface.Runtime`."""
    names = [output.name for output in session.get_outputs()]
    feeds = {
        "source": np.array([source], np.int64),
        "lengths": np.array([len(source)], np.int32),
        "target": np.array([target], np.int64),
    }
    return {name: array[0] for name, array in zip(names, session.run(names, feeds), strict=True)}


def pool(session: onnxruntime.InferenceSession, memory: Array) -> Array:
    """The vector ``[width]`` fp32 that ``pooling.onnx`` makes of one text's ``memory`` ``[tokens, width]``."""
    vectors: Array
    [vectors] = session.run(["vectors"], {"memory": memory[None], "lengths": np.array([len(memory)], np.int32)})
    return vectors[0]
