import json
from pathlib import Path

import pytest

from export.bundle import read_manifest
from serving.bench.steps import main, measure
from serving.runtime.devices import runtime_on
from tests.serving.runtime.fake_device import FakeDevice, device_runtime


def test_times_a_step_three_times_on_the_cpu(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_bundle), "--rows", "1,12", "--repeats", "1"]) == 0
    said, table = capsys.readouterr()
    steps = json.loads(said)["steps"]
    assert [each["rows"] for each in steps] == [1, 12]
    assert all(each[name] > 0 for each in steps for name in ("batch_ms", "graph_ms"))
    assert "engine / graph" in table


def test_nothing_stays_in_the_batch_and_steps_have_all_rows(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtime_on("cpu", tiny_bundle, read_manifest(tiny_bundle), 1)
    batch = runtime.batch(6)
    monkeypatch.setattr(runtime, "batch", lambda _: batch)
    sizes = list[int]()
    step = batch._decoder.step
    monkeypatch.setattr(batch._decoder, "step", lambda rows, *ask: (sizes.append(rows), step(rows, *ask))[1])
    [found] = measure(runtime, [6], repeats=1)
    assert found.rows == 6
    assert len(batch) == 0
    assert set(sizes) == {6}


def test_on_a_device_with_memory_of_its_own(tiny_bundle: Path) -> None:
    device = FakeDevice()
    [found] = measure(device_runtime(tiny_bundle, device), [3], repeats=1)
    assert found.graph_ms > 0
    assert device.runs > 100


def test_what_cannot_be_served_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
