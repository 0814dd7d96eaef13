import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serving.bench.client import Client
from serving.bench.front_door import Asked, answers, main, measure
from serving.bench.questions import Question
from tests.conftest import ROOT
from tests.loadtest.stub import Stub, served
from tests.serving.bench.stubs import elsewhere, port_of


@pytest.mark.parametrize("backwards", [False, True])
def test_services_take_turns_and_are_asked_equally_often(backwards: bool) -> None:
    order = list[str]()

    def handler(name: str) -> type[Stub]:
        class Noting(Stub):
            def post(self) -> None:
                order.append(name)
                self.answer(200, self.body())

        return Noting

    process = psutil.Process()
    with (
        served(handler("old")) as one,
        served(handler("new")) as other,
        Client(port_of(one), "/", b"{}") as old,
        Client(port_of(other), "/", b"{}") as new,
    ):
        pair = measure(Asked(old, process), Asked(new, process), 12, backwards)
    first, second = ("new", "old") if backwards else ("old", "new")
    expected = [(first, 10), (second, 12), (first, 2)]
    assert order == [name for name, count in expected for _ in range(count)]
    for each in (pair.old, pair.new):
        assert 0 < each.p50_us <= each.p90_us <= each.p99_us
        assert each.cpu_us >= 0
    assert pair.ratio == pair.new.p50_us / pair.old.p50_us


@pytest.mark.parametrize(("reply", "status"), [(b"the same", 0), (b"the sane", 1)])
def test_a_planted_difference_is_counted_and_ends_with_status_1(
    reply: bytes, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    class Old(Stub):
        def post(self) -> None:
            self.body()
            self.answer(200, b"the same")

    class New(Old):
        def post(self) -> None:
            self.answer(200, reply if b"odd" in self.body() else b"the same")

    questions = [Question("POST", "/v1/translate", body) for body in (b"even", b"odd", b"even")]
    with served(Old) as one, served(New) as other:
        assert answers(elsewhere("old", one), elsewhere("new", other), questions) == status
    said, shown = capsys.readouterr()
    found = json.loads(said.splitlines()[-1])
    assert (found["asked"], found["identical"], len(found["differences"])) == (3, 3 - status, status)
    assert f"{3 - status} of 3 answers are identical" in shown
    assert ("body at byte 6" in shown) == bool(status)


def test_a_folder_that_is_no_checkout_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--against", str(tmp_path)])
    assert f"{tmp_path} is no checkout of this repository" in capsys.readouterr().err


def test_the_command_does_without_torch() -> None:
    program = "import sys, serving.bench.front_door; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
def test_a_version_is_measured_against_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--against", str(ROOT), "--requests", "30", "--rounds", "2", "--new-connection"]) == 0
    said, shown = capsys.readouterr()
    found = json.loads(said.splitlines()[-1])
    assert [set(each) for each in found["rounds"]] == [{"old", "new", "ratio"}] * 2
    assert all(each[name]["cpu_us"] > 0 for each in found["rounds"] for name in ("old", "new"))
    assert found["machine"]["cpu"] in shown
    assert "a new connection each" in shown
