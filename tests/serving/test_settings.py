from pathlib import Path

import pytest
from pydantic import ValidationError

from export.bundle import BundleError, read_manifest, shipped
from serving.settings import Settings


def test_defaults_serve_base_on_this_machine_only() -> None:
    settings = Settings()
    assert settings.host == "127.0.0.1"
    assert read_manifest(settings.bundle).name == "en-de-base"
    assert settings.device == "cpu"
    assert settings.cpus >= 1


def test_arguments_come_before_the_environment_and_that_before_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_ROWS", "7")
    monkeypatch.setenv("DRAGOMAN_BUNDLE", "/some/where")
    assert Settings().rows == 7
    assert Settings(rows=9).rows == 9
    assert Settings().bundle == Path("/some/where")


def test_a_bundle_goes_by_its_path_or_if_it_ships_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped() == ["en-de-base", "en-de-small"]
    for name in shipped():
        monkeypatch.setenv("DRAGOMAN_BUNDLE", name)
        assert read_manifest(Settings().bundle).name == name
    for path in ("mine", "./en-de-small"):
        monkeypatch.setenv("DRAGOMAN_BUNDLE", path)
        assert Settings().bundle == Path(path)
    assert Settings(bundle=Path("en-de-small")).bundle == Path("en-de-small")
    with pytest.raises(BundleError, match=r"no such folder\. These ship and go by name: en-de-base, en-de-small"):
        read_manifest(Path("mine"))


def test_unknown_names_are_refused_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="row"):
        Settings(row=1)  # type: ignore[call-arg]
    monkeypatch.setenv("DRAGOMAN_ROW", "1")
    with pytest.raises(ValidationError, match="DRAGOMAN_ROW"):
        Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 0),
        ("rows", 0),
        ("timeout", -1),
        ("max_beam", 0),
        ("max_characters", 10**9),
        ("ingress", "none"),
        ("target_load", 0),
        ("target_load", 1.1),
        ("gpus", -0.5),
        ("gpus", 1.5),
        ("gpus", float("nan")),
    ],
)
def test_senseless_values_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})


def test_cores_are_shared_among_as_many_replicas_as_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.settings.cores", lambda: 12)
    assert (Settings().max_replicas, Settings().cpus) == (1, 12)
    assert (Settings(replicas=3).max_replicas, Settings(replicas=3).cpus) == (3, 4)
    assert Settings(replicas=2, max_replicas=6).cpus == 2
    assert Settings(replicas=2, max_replicas=100).cpus == 1
    assert Settings(max_replicas=6, cpus=5).cpus == 5


def test_on_gpus_steps_are_larger_and_cores_fewer_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.settings.cores", lambda: 12)

    def sizes(**given: float) -> tuple[int, ...]:
        settings = Settings(**given)  # type: ignore[arg-type]
        return settings.rows, settings.request_rows, settings.encode_tokens, settings.cpus

    assert sizes() == (128, 4, 1024, 12)
    assert sizes(gpus=1) == sizes(gpus=0.1) == (256, 64, 16_384, 2)
    assert sizes(gpus=1, replicas=12) == (256, 64, 16_384, 1)
    assert sizes(gpus=1, rows=3, request_rows=2, encode_tokens=5, cpus=7) == (3, 2, 5, 7)
    monkeypatch.setenv("DRAGOMAN_GPUS", "0.5")
    assert (sizes()[0], Settings().device) == (256, "cuda")


@pytest.mark.parametrize(
    ("gpus", "replicas", "whole"),
    [(0, 9, 0), (1, 3, 3), (0.5, 1, 1), (0.5, 3, 2), (0.4, 5, 3), (0.7, 3, 3), (0.1, 10, 1), (0.1, 11, 2)],
)
def test_replicas_share_gpus_as_many_as_fit_on_each(gpus: float, replicas: int, whole: int) -> None:
    assert Settings(gpus=gpus, replicas=replicas).whole_gpus == whole
    assert Settings(gpus=gpus, max_replicas=replicas).whole_gpus == whole


def test_more_replicas_at_least_than_at_most_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_replicas 1 is less than replicas 2"):
        Settings(replicas=2, max_replicas=1)


def test_the_state_folder_is_a_private_one_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().state is None
    monkeypatch.setenv("DRAGOMAN_STATE", "/var/lib/dragoman")
    assert Settings().state == Path("/var/lib/dragoman")
    monkeypatch.setenv("DRAGOMAN_STATE", "")
    with pytest.raises(ValidationError, match="is blank: name a folder, or leave it out"):
        Settings()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().rows = 3


def test_every_setting_is_documented() -> None:
    assert all(field.description for field in Settings.model_fields.values())
