"""An engine that computes nothing, for a service whose front door alone is to be measured.

Python imports this module at its start, in every process that has this folder in its PYTHONPATH. The variable
IDLE_ENGINE names a file. As long as that file is missing, the engine works as always: the service proves its bundle and
warms up. As soon as it is there, every job ends at once with a fixed result of the right shape.
"""

import functools
import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

ENGINE = "serving.engine.engine"
TOKENS = [390, 535, 1800, 362, 2928, 358, 316, 3]
"""What en-de-small writes for "The file could not be opened.", end token included."""
LOG_PROBABILITIES = [-0.125] * len(TOKENS)
"""Their sum, -1, is a score by which an idle engine is known."""


def idle(submit: Callable[..., None], begin: str) -> Callable[..., None]:
    """``Engine.submit`` that ends every job at once as soon as there is the file ``begin``; until then ``submit``."""
    import numpy as np  # only now: most processes that import this module run no engine

    from serving.engine.jobs import EncodingJob, TranslationJob
    from serving.engine.results import Attended, Encoded, Translated
    from serving.engine.search import Hypothesis

    hypothesis = Hypothesis(TOKENS, LOG_PROBABILITIES, "stop")
    begun = False

    def result(job: Any, model: Any) -> Translated | Encoded | Attended:
        if isinstance(job, TranslationJob):
            return Translated([hypothesis] * job.search.decoding.alternatives, job.timings())
        if isinstance(job, EncodingJob):
            vectors = 1 if job.pooled else job.source_tokens
            return Encoded(np.full((vectors, model.width), model.width**-0.5, np.float32), job.timings())
        source, target, arrays = len(job.source), len(job.target), {}
        kinds = (("encoder", "self", source, source), ("decoder", "self", target, target))
        for side, kind, queries, keys in (*kinds, ("decoder", "cross", target, source)):
            for layer in range(getattr(model, f"{side}_layers")):
                for part in ("weights", "scores"):
                    arrays[f"{side}.{layer}.{kind}.{part}"] = np.zeros((model.heads, queries, keys), np.float32)
        return Attended(arrays, job.timings())

    @functools.wraps(submit)
    def at_once(engine: Any, jobs: Sequence[Any]) -> None:
        nonlocal begun
        begun = begun or os.path.exists(begin)
        if not begun:
            submit(engine, jobs)
            return
        for job in jobs:
            job.admitted = job.encoded = time.monotonic()
            if listener := getattr(job, "listener", None):
                for token in TOKENS:
                    listener.loop.call_soon_threadsafe(listener.on_token, token)
            job.deliver(result(job, engine._runtime.manifest.model))

    return at_once


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        module.Engine.submit = idle(module.Engine.submit, os.environ["IDLE_ENGINE"])


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == ENGINE else None
        if spec and spec.loader:
            spec.loader = _Loader(spec.loader)
        return spec


if "IDLE_ENGINE" in os.environ:
    sys.meta_path.insert(0, _Finder())
