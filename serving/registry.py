"""The models that one replica serves, by name."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from export.bundle import BundleError, Manifest
from serving.engine.work import Work
from serving.errors import Invalid
from serving.languages import best_pair
from serving.pipeline import Pipeline
from serving.settings import Settings

CHOICES = 256
"""Ways to ask for a model and two languages whose answers are remembered."""


class Registry:
    """Pipelines of one process, in order, and what can be said of all of them."""

    def __init__(self, pipelines: Sequence[Pipeline]) -> None:
        """Take over ``pipelines``, one at least; BundleError when two have one name."""
        self.pipelines = list(pipelines)
        self._by_name: dict[str, Pipeline] = {}
        for pipeline in self.pipelines:
            name = pipeline.manifest.name
            if name in self._by_name:
                reason = f"its name {name!r} is another model's of this service: export it under another name"
                raise BundleError(pipeline.settings.bundle, [reason])
            self._by_name[name] = pipeline
        self._chosen = functools.lru_cache(CHOICES)(self._choose)  # most requests want the same
        self._warm = self._leaving = False
        self._when_broken: Callable[[BaseException], None] = lambda failure: None

    @classmethod
    def load(cls, settings: Settings, bundles: Sequence[Path] = (), work: Callable[[], Work] = Work) -> "Registry":
        """Start the engines of ``bundles``, of that of ``settings`` unless given; BundleError when one cannot be used.

        They share the cores that ``settings`` have for a replica. Each engine counts what it does in a ``work()``.
        """
        bundles = bundles or [settings.bundle]
        pipelines: list[Pipeline] = []
        try:
            for bundle, cores in zip(bundles, shares(settings.cpus, len(bundles)), strict=True):
                pipelines.append(Pipeline(settings.model_copy(update={"bundle": bundle}), cores, work()))
            return cls(pipelines)
        except BaseException:  # an interrupt, too
            for pipeline in pipelines:
                pipeline.close()
            raise

    def choose(self, model: str | None, source: str | None, target: str | None) -> tuple[Pipeline, str, str]:
        """The pipeline for a request, and its own codes of the two languages.

        Unless a ``model`` is named, it is the one whose languages are nearest to ``source`` and ``target`` (None: any),
        the first of several. Invalid names the field when there is none.
        """
        return self._chosen(model, source, target)

    def _choose(self, model: str | None, source: str | None, target: str | None) -> tuple[Pipeline, str, str]:
        if model is not None and model not in self._by_name:
            known = ", ".join(self._by_name)
            raise Invalid([("model", f"{model!r} is not a model of this service; it has {known}")])
        candidates = self.pipelines if model is None else [self._by_name[model]]
        pairs = [pair for pipeline in candidates for pair in pipeline.manifest.pairs]
        owner = "this model" if len(candidates) == 1 else "this service"
        pair = best_pair(pairs, source, target, owner)
        return next(pipeline for pipeline in candidates if pair in pipeline.manifest.pairs), *pair

    @property
    def settings(self) -> Settings:
        """What the whole service is set to; the bundle is the first model's."""
        return self.pipelines[0].settings

    @property
    def manifests(self) -> list[Manifest]:
        """Of every model, in order."""
        return [pipeline.manifest for pipeline in self.pipelines]

    @property
    def engine_load(self) -> float:
        """The largest load of an engine (`Engine.load`): the model with the most to do says how busy the replica is."""
        return max(pipeline.engine.load for pipeline in self.pipelines)

    @property
    def when_broken(self) -> Callable[[BaseException], None]:
        """Called at the end of any engine's thread, if an exception ends it, with that."""
        return self._when_broken

    @when_broken.setter
    def when_broken(self, call: Callable[[BaseException], None]) -> None:
        self._when_broken = call
        for pipeline in self.pipelines:
            pipeline.engine.when_broken = call

    async def warm_up(self) -> None:
        """Take every graph of every model through a first run."""
        for pipeline in self.pipelines:
            await pipeline.warm_up()
        self._warm = True

    def leave(self) -> None:
        """Say from now on that this replica is to go: it answers what comes, but is not ready for more."""
        self._leaving = True

    def check_alive(self) -> None:
        """RuntimeError when an engine's thread has ended or hangs: the replica must be replaced."""
        for pipeline in self.pipelines:
            pipeline.engine.check_health()

    def check_ready(self) -> None:
        """RuntimeError when new requests should go to another replica: this one is dead, not warm yet, or to go."""
        self.check_alive()
        if self._leaving:
            raise RuntimeError("this replica is stopping")
        if not self._warm:
            raise RuntimeError("this replica is starting: not every graph has run once")

    def close(self) -> None:
        """Stop the engines."""
        for pipeline in self.pipelines:
            pipeline.close()


def shares(cores: int, count: int) -> list[int]:
    """``cores`` shared among ``count`` models as evenly as possible, the first with more, and 1 each at least."""
    each, more = divmod(cores, count)
    return [max(1, each + (index < more)) for index in range(count)]
