import os

import pytest

from serving.commands import console


def test_pytorch_gets_as_many_threads_as_there_are_cores_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "cores", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    console.require("torch", "export")
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    console.require("torch", "export")
    assert os.environ["OMP_NUM_THREADS"] == "5"
