"""Faults of a device, planted in any that computes: each gives wrong translations, and must be refused."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.runtime.batch import CacheCopy
from serving.runtime.device import Device, DeviceArray, Part
from serving.runtime.device_cache import DeviceCache

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


Change = Callable[[Array, Array], Array]
"""What values become, given those of the step before (of the first, themselves)."""


def uploads(device: Device, name: str, change: Change) -> Faulty:
    """``change`` decides what is uploaded for the decoder's input ``name``."""
    return _moved(device, "upload", lambda inputs, outputs: inputs if "token" in inputs else {}, name, change)


def found(device: Device, name: str, change: Change) -> Faulty:
    """``change`` decides what is downloaded of the decoder's output ``name``."""
    return _moved(device, "download", lambda inputs, outputs: outputs if "tokens" in outputs else {}, name, change)


def _moved(
    device: Device, way: str, arrays: Callable[[Any, Any], Mapping[str, Any]], name: str, change: Change
) -> Faulty:
    blocks: dict[int, Part] = {}
    before: dict[int, Array] = {}

    def bind(right: Right, session: Any, inputs: Any, outputs: Any, host: Any) -> Any:
        if part := arrays(inputs, outputs).get(name):
            blocks[id(part.whole)] = part
        return right(session, inputs, outputs, host)

    def changed(array: DeviceArray, values: Array) -> Array:
        if part := blocks.get(id(array)):
            values = values.copy()
            own = _of(part, values)
            right = own.copy()
            own[...] = change(right.copy(), before.get(id(array), right))
            before[id(array)] = right
        return values

    def upload(right: Right, values: Array, array: DeviceArray) -> None:
        right(changed(array, values), array)

    def download(right: Right, array: DeviceArray) -> Array:
        return changed(array, right(array))

    return Faulty(device, bind=bind, **({"upload": upload} if way == "upload" else {"download": download}))


def _of(part: Part, values: Array) -> Array:
    """What ``part`` is of the bytes ``values`` of its whole, as a view."""
    size = int(np.prod(part.shape)) * part.dtype.itemsize
    return values[part.offset : part.offset + size].view(part.dtype).reshape(part.shape)


def stale(device: Device, name: str) -> Faulty:
    """At each step the decoder reads the ``name`` of the step before."""
    return uploads(device, name, lambda _, before: before)


def exchange(values: Array, _: Array) -> Array:
    """Wherever there are several rows, the first two have each other's values."""
    return values[[1, 0, *range(2, len(values))]] if len(values) > 1 else values


def exchanged(device: Device, name: str) -> Faulty:
    """See `exchange`."""
    return uploads(device, name, exchange)


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
        caches = [array for name, array in outputs.items() if name.startswith("self_value")]

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


def poisoned(device: Device) -> Faulty:
    """Caches begin as something that is no number."""

    def zeros(right: Right, shape: tuple[int, ...], dtype: Any) -> Any:
        return device.array(np.full(shape, np.nan, dtype)) if len(shape) == 4 else right(shape, dtype)

    return Faulty(device, zeros=zeros)


FAULTS: dict[str, Callable[[Device], Faulty]] = {
    "no key is written": lambda device: lost(device, "self_key_0_out", "self_key_1_out"),
    "one layer's values are not written": lambda device: lost(device, "self_value_1_out"),
    "the source's keys are not put into rows": lambda device: lost(device, "cross_key_0_out"),
    "token of the step before": lambda device: stale(device, "token"),
    "position of the step before": lambda device: stale(device, "position"),
    "lengths of the step before": lambda device: stale(device, "lengths"),
    "given token of the step before": lambda device: stale(device, "given"),
    "log-probabilities of two rows exchanged": lambda device: found(device, "log_probabilities", exchange),
    "tokens found of two rows exchanged": lambda device: found(device, "tokens", exchange),
    "log-probabilities of the step before": lambda device: found(device, "log_probabilities", lambda _, before: before),
    "tokens of two rows exchanged": lambda device: exchanged(device, "token"),
    "positions of two rows exchanged": lambda device: exchanged(device, "position"),
    "lengths of two rows exchanged": lambda device: exchanged(device, "lengths"),
    "the first source a token too short": lambda device: off_by_one(device, -1, 0),
    "the first source a token too long": lambda device: off_by_one(device, 1, 0),
    "the twelfth source a token too short": lambda device: off_by_one(device, -1, 11),
    "the twelfth source a token too long": lambda device: off_by_one(device, 1, 11),
}
"""Each plants itself in a device."""

COPY_FAULTS = ("not at all", "another row", "another place")
"""How rows may be copied."""


def wrong_copies(fault: str) -> Callable[[DeviceCache, Sequence[CacheCopy]], None]:
    """A ``DeviceCache.copy`` that goes wrong in one of `COPY_FAULTS`."""
    copy = DeviceCache.copy

    def wrong(memory: DeviceCache, copies: Sequence[CacheCopy]) -> None:
        if fault == "another row":
            copies = [each._replace(origin=max(0, each.origin - 1)) for each in copies]
        if fault == "another place":
            copies = [each._replace(row=max(0, each.row - 1)) for each in copies]
        if fault != "not at all":
            copy(memory, copies)

    return wrong
