"""Faults for a real service: a file in the folder FAULTS lets the function of its name fail once.

Python imports this at its start, in every process of a service that has this folder in its PYTHONPATH.
"""

import functools
import importlib.abc
import importlib.machinery
import os
import sys

PLACES = {
    "serving.runtime.cpu": {
        "encode": "CpuRuntime._encode",
        "attention": "CpuRuntime.attention",
        "pool": "CpuRuntime.pool",
    },
    "serving.runtime.cpu_decoder": {"step": "CpuDecoder.step"},
    "serving.runtime.cache": {"store": "KeyValueCache.store"},
    "serving.engine.search": {"search": "Single.advance", "beam": "Beam.advance"},
    "serving.streaming": {"listener": "TextStream.add"},
    "model.tokenizer": {"tokenise": "Tokenizer.sources", "detokenise": "Tokenizer.decode"},
}


class Planted(RuntimeError):
    """A fault that a test has planted."""


def _spoilt(function, name):
    path = os.path.join(os.environ["FAULTS"], name)

    @functools.wraps(function)
    def call(*arguments, **named):
        if os.path.exists(path):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass  # another process was first
            else:
                raise Planted(name)
        return function(*arguments, **named)

    return call


class _Loader(importlib.abc.Loader):
    def __init__(self, loader, places):
        self._loader, self._places = loader, places

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        for name, place in self._places.items():
            kind, function = place.split(".")
            owner = getattr(module, kind)
            setattr(owner, function, _spoilt(getattr(owner, function), name))


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in PLACES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec:
            spec.loader = _Loader(spec.loader, PLACES[name])
        return spec


if "FAULTS" in os.environ:
    sys.meta_path.insert(0, _Finder())
