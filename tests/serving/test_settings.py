from pathlib import Path

import pytest
from pydantic import ValidationError

from serving.settings import Settings


def test_defaults_serve_the_shipped_bundle_on_this_machine_only() -> None:
    settings = Settings()
    assert settings.host == "127.0.0.1"
    assert settings.bundle.is_dir()
    assert settings.device == "cpu"
    assert settings.cpus >= 1


def test_arguments_come_before_the_environment_and_that_before_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_ROWS", "7")
    monkeypatch.setenv("DRAGOMAN_BUNDLE", "/some/where")
    assert Settings().rows == 7
    assert Settings(rows=9).rows == 9
    assert Settings().bundle == Path("/some/where")


def test_unknown_names_are_refused_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="row"):
        Settings(row=1)  # type: ignore[call-arg]
    monkeypatch.setenv("DRAGOMAN_ROW", "1")
    with pytest.raises(ValidationError, match="DRAGOMAN_ROW"):
        Settings()


@pytest.mark.parametrize(
    ("name", "value"), [("port", 0), ("rows", 0), ("timeout", -1), ("max_beam", 0), ("max_characters", 10**9)]
)
def test_senseless_values_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().rows = 3


def test_every_setting_is_documented() -> None:
    assert all(field.description for field in Settings.model_fields.values())
