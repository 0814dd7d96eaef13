import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from export.bundle import MANIFEST, BundleError
from serving.errors import Invalid
from serving.options import TranslateOptions
from serving.registry import Registry, shares
from serving.settings import Settings
from tests.service import fetch
from tests.serving.conftest import answering, wait_until


def with_manifest(bundle: Path, folder: Path, **changes: object) -> Path:
    """A copy of ``bundle`` in ``folder`` with ``changes`` of its manifest."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).write_text(json.dumps(manifest | changes), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def reverse_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model again, under another name, as one from German into English and into German."""
    folder = tmp_path_factory.mktemp("bundle") / "reverse"
    return with_manifest(tiny_bundle, folder, name="reverse", pairs=[["de", "en"], ["de", "de"]])


@pytest.fixture(scope="module")
def registry(tiny_bundle: Path, reverse_bundle: Path) -> Iterator[Registry]:
    """Both models, with three cores."""
    registry = Registry.load(Settings(bundle=tiny_bundle, cpus=3), [tiny_bundle, reverse_bundle])
    yield registry
    registry.close()


@pytest.fixture
def alone(tiny_bundle: Path) -> Iterator[Registry]:
    """The tiny model alone, which a test may break."""
    registry = Registry.load(Settings(bundle=tiny_bundle, cpus=1))
    yield registry
    registry.close()


def engine_threads() -> int:
    return sum(thread.name == "engine" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("cores", "count", "expected"),
    [(1, 1, [1]), (8, 1, [8]), (8, 2, [4, 4]), (7, 3, [3, 2, 2]), (2, 3, [1, 1, 1]), (1, 4, [1, 1, 1, 1])],
)
def test_cores_are_shared_as_evenly_as_possible_and_each_model_has_one(
    cores: int, count: int, expected: list[int]
) -> None:
    assert shares(cores, count) == expected


def test_models_share_the_cores_of_the_replica(registry: Registry) -> None:
    assert [pipeline.engine._runtime.encoder_cost.lanes for pipeline in registry.pipelines] == [2, 1]
    assert [manifest.name for manifest in registry.manifests] == ["tiny", "reverse"]
    assert registry.settings.cpus == 3


def test_one_model_has_all_cores(tiny_bundle: Path) -> None:
    registry = Registry.load(Settings(bundle=tiny_bundle, cpus=2))
    try:
        [pipeline] = registry.pipelines
        assert pipeline.engine._runtime.encoder_cost.lanes == 2
        assert registry.settings == Settings(bundle=tiny_bundle, cpus=2)
    finally:
        registry.close()


@pytest.mark.parametrize(
    ("model", "source", "target", "expected"),
    [
        (None, None, None, ("tiny", "en", "de")),
        (None, "de", None, ("reverse", "de", "en")),
        (None, None, "en-US", ("reverse", "de", "en")),
        (None, None, "de", ("tiny", "en", "de")),
        (None, "DE", "de_AT", ("reverse", "de", "de")),
        ("reverse", None, None, ("reverse", "de", "en")),
        ("reverse", None, "de", ("reverse", "de", "de")),
        ("tiny", "en_GB", "DE", ("tiny", "en", "de")),
    ],
)
def test_a_model_is_chosen_by_its_name_or_by_its_languages(
    registry: Registry, model: str | None, source: str | None, target: str | None, expected: tuple[str, str, str]
) -> None:
    pipeline, *pair = registry.choose(model, source, target)
    assert (pipeline.manifest.name, *pair) == expected


@pytest.mark.parametrize(
    ("model", "source", "target", "message"),
    [
        ("x", None, None, "model: 'x' is not a model of this service; it has tiny, reverse"),
        ("Tiny", None, None, "model: 'Tiny' is not a model of this service; it has tiny, reverse"),
        ("", None, None, "model: '' is not a model of this service; it has tiny, reverse"),
        ("tiny", "de", None, "source: 'de' is not a source language; this model reads en"),
        ("reverse", None, "fr", "target: 'fr' is not a target language; this model writes de, en"),
        (None, "fr", None, "source: 'fr' is not a source language; this service reads de, en"),
        (None, "en", "en", "target: 'en' is not a target language; this service writes de"),
    ],
)
def test_what_no_model_does_is_named(
    registry: Registry, model: str | None, source: str | None, target: str | None, message: str
) -> None:
    with pytest.raises(Invalid) as raised:
        registry.choose(model, source, target)
    assert raised.value.detail == message
    assert raised.value.members["errors"][0]["field"] == message.partition(":")[0]


def test_with_one_model_its_languages_are_this_models(alone: Registry) -> None:
    with pytest.raises(Invalid, match="source: 'xx' is not a source language; this model reads en"):
        alone.choose(None, "xx", None)


def test_the_chosen_models_translate_side_by_side(registry: Registry) -> None:
    options = TranslateOptions(min_tokens=5, max_tokens=5)
    before = [pipeline.engine.work.steps for pipeline in registry.pipelines]

    async def run() -> list[int]:
        chosen = [registry.choose(None, source, None) for source in ("en", "de")]
        answers = await asyncio.gather(
            *(pipeline.translate(["Hello."], source, target, options) for pipeline, source, target in chosen)
        )
        return [translation.tokens for [translation], _ in answers]

    assert asyncio.run(run()) == [5, 5]
    assert [pipeline.engine.work.steps for pipeline in registry.pipelines] == [steps + 5 for steps in before]


def test_the_fullest_engine_says_how_busy_the_replica_is(registry: Registry) -> None:
    first, second = registry.pipelines

    async def run() -> None:
        options = TranslateOptions(min_tokens=100, max_tokens=100)
        task = asyncio.create_task(second.translate(["Hello."] * 64, "de", "en", options))
        await asyncio.to_thread(wait_until, lambda: second.engine.load > 0)
        assert first.engine.load == 0
        assert registry.engine_load > 0
        task.cancel()

    asyncio.run(run())
    wait_until(lambda: registry.engine_load == 0)


def test_two_models_of_one_name_are_refused_and_leave_no_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    before = engine_threads()
    again = with_manifest(tiny_bundle, tmp_path / "again")
    with pytest.raises(BundleError, match="its name 'tiny' is another model's of this service"):
        Registry.load(Settings(bundle=tiny_bundle, cpus=1), [tiny_bundle, again])
    assert engine_threads() == before


def test_a_bundle_that_cannot_be_used_leaves_no_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    before = engine_threads()
    with pytest.raises(BundleError):
        Registry.load(Settings(bundle=tiny_bundle, cpus=1), [tiny_bundle, tmp_path])
    assert engine_threads() == before


def test_a_replica_is_alive_before_it_is_warm_and_ready_only_after(alone: Registry) -> None:
    alone.check_alive()
    with pytest.raises(RuntimeError, match="starting: not every graph has run once"):
        alone.check_ready()
    asyncio.run(alone.warm_up())
    alone.check_ready()


def test_a_replica_that_is_to_go_is_alive_and_not_ready(alone: Registry) -> None:
    asyncio.run(alone.warm_up())
    alone.leave()
    alone.check_alive()
    with pytest.raises(RuntimeError, match="stopping"):
        alone.check_ready()


def test_when_any_engine_breaks_it_is_told_and_the_replica_is_neither_alive_nor_ready(
    tiny_bundle: Path, reverse_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.load(Settings(bundle=tiny_bundle, cpus=1), [tiny_bundle, reverse_bundle])
    failures: list[BaseException] = []
    checks: list[Callable[[], None]] = [registry.check_alive, registry.check_ready]
    try:
        asyncio.run(registry.warm_up())
        registry.when_broken = failures.append
        last = registry.pipelines[-1]
        monkeypatch.setattr(last.engine._batch, "step", lambda requests: 1 / 0)
        with pytest.raises(Exception, match="the engine"):
            asyncio.run(last.translate(["Hello."], "de", "en"))
        wait_until(lambda: bool(failures))
        assert isinstance(failures[0], ZeroDivisionError)
        for check in checks:
            with pytest.raises(RuntimeError, match="thread has ended: division by zero"):
                check()
    finally:
        registry.close()


def test_a_replica_that_is_to_go_still_answers_and_says_so(tiny_bundle: Path) -> None:
    with answering(tiny_bundle) as api:
        assert [fetch(f"{api.url}/{route}").status for route in ("healthz", "readyz")] == [200, 200]
        api.registry.leave()
        assert [fetch(f"{api.url}/{route}").status for route in ("healthz", "readyz")] == [200, 503]
        body = json.dumps({"text": "Hello.", "source": "en_US", "target": "DE"}).encode()
        answer = fetch(f"{api.url}/v1/translate", body)
        assert (answer.status, answer.json["source"], answer.json["target"]) == (200, "en", "de")
