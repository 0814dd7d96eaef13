"""Faults of a device, planted in any that computes: each gives wrong translations, and must be refused."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.runtime.device import Device, DeviceArray, Part

Array = NDArray[Any]
Right = Any
"""The device's own method, which a change is given."""


class Faulty:
    """``device`` with some methods changed."""

    def __init__(self, device: Device, **changes: Callable[..., Any]) -> None:
        self.device, self._changes = device, changes

    def __getattr__(self, name: str) -> Any:
        right = getattr(self.device, name)
        change = self._changes.get(name)
        return (lambda *arguments, **named: change(right, *arguments, **named)) if change else right


def lost(device: Device, *names: str) -> Faulty:
    """What a graph writes to some caches does not come back."""

    def bind(right: Right, session: Any, inputs: Any, outputs: Mapping[str, DeviceArray], host: Any) -> Any:
        elsewhere = {
            name: device.zeros(array.shape, array.dtype) if name in names else array for name, array in outputs.items()
        }
        return right(session, inputs, elsewhere, host)

    return Faulty(device, bind=bind)


def uploads(device: Device, name: str, change: Callable[[Array, Array], Array]) -> Faulty:
    """``change`` makes of the decoder's input ``name``, and of what was uploaded for it first, what is uploaded."""
    blocks: dict[int, Part] = {}
    first: dict[int, Array] = {}

    def bind(right: Right, session: Any, inputs: Mapping[str, Any], outputs: Any, host: Any) -> Any:
        if "token" in inputs:
            blocks[id(inputs[name].whole)] = inputs[name]
        return right(session, inputs, outputs, host)

    def upload(right: Right, values: Array, array: DeviceArray) -> None:
        if part := blocks.get(id(array)):
            values = values.copy()
            own = _of(part, values)
            own[...] = change(own.copy(), first.setdefault(id(array), own.copy()))
        right(values, array)

    return Faulty(device, bind=bind, upload=upload)


def _of(part: Part, values: Array) -> Array:
    """What ``part`` is of the bytes ``values`` of its whole, as a view."""
    size = int(np.prod(part.shape)) * part.dtype.itemsize
    return values[part.offset : part.offset + size].view(part.dtype).reshape(part.shape)


def stale(device: Device, name: str) -> Faulty:
    """Whatever comes after the first step of a number of rows, its ``name`` is used."""
    return uploads(device, name, lambda values, first: first)


def exchanged(device: Device, name: str) -> Faulty:
    """Wherever there are several rows, two have each other's ``name``."""
    return uploads(
        device, name, lambda values, _: values[[1, 0, *range(2, len(values))]] if len(values) > 1 else values
    )


def off_by_one(device: Device, by: int, row: int) -> Faulty:
    """One row's source is longer or shorter than it is."""

    def change(values: Array, _: Array) -> Array:
        if len(values) > row:
            values[row] += by
        return values

    return uploads(device, "lengths", change)


def forgetful(device: Device, position: int) -> Faulty:
    """From a ``position`` on, values are not written any more."""

    def bind(right: Right, session: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any], host: Any) -> Any:
        run = right(session, inputs, outputs, host)
        if "position" not in inputs:
            return run
        caches = [array.whole for name, array in outputs.items() if name.startswith("self_value")]

        def forget() -> None:
            positions = inputs["position"]
            late = (_of(positions, device.download(positions.whole)) >= position).nonzero()[0]
            kept = [device.download(cache)[late] for cache in caches if len(late)]
            run()
            for cache, values in zip(caches, kept, strict=False):
                written = device.download(cache)
                written[late] = values
                device.upload(written, cache)

        return forget

    return Faulty(device, bind=bind)


def other_softmax(device: Device, vocabulary: int) -> Faulty:
    """The log-probabilities of all tokens come in another order."""

    def download(right: Right, array: DeviceArray) -> Array:
        values: Array = right(array)
        return np.roll(values, 1, -1) if array.shape[1:] == (vocabulary,) else values

    return Faulty(device, download=download)


def poisoned(device: Device) -> Faulty:
    """Caches begin as something that is no number."""

    def zeros(right: Right, shape: tuple[int, ...], dtype: Any) -> Any:
        return device.array(np.full(shape, np.nan, dtype)) if len(shape) == 4 else right(shape, dtype)

    return Faulty(device, zeros=zeros)


FAULTS: dict[str, Callable[[Device, int], Faulty]] = {
    "no key is written": lambda device, _: lost(device, "self_key_0_out", "self_key_1_out"),
    "one layer's values are not written": lambda device, _: lost(device, "self_value_1_out"),
    "the source's keys are not put into rows": lambda device, _: lost(device, "cross_key_0_out"),
    "token of the step before": lambda device, _: stale(device, "token"),
    "position of the step before": lambda device, _: stale(device, "position"),
    "lengths of the step before": lambda device, _: stale(device, "lengths"),
    "given token of the step before": lambda device, _: stale(device, "given"),
    "all tokens' probabilities in another order": other_softmax,
    "tokens of two rows exchanged": lambda device, _: exchanged(device, "token"),
    "positions of two rows exchanged": lambda device, _: exchanged(device, "position"),
    "lengths of two rows exchanged": lambda device, _: exchanged(device, "lengths"),
    "the first source a token too short": lambda device, _: off_by_one(device, -1, 0),
    "the first source a token too long": lambda device, _: off_by_one(device, 1, 0),
    "the twelfth source a token too short": lambda device, _: off_by_one(device, -1, 11),
    "the twelfth source a token too long": lambda device, _: off_by_one(device, 1, 11),
}
"""Each made of a device and the size of the vocabulary."""
