"""Numbers that several processes write and any of them reads."""

import json
import logging
import os
import random
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from serving import totals
from serving.totals import FOLDER, Totals, read
from serving.totals_file import FILE_BYTES, Number
from tests.conftest import ROOT

OTHER = """
import sys
from pathlib import Path
from serving.totals import Totals

own = Totals(Path(sys.argv[1]))
count, level = own.counter("asked", route="/a"), own.gauge("rows", process="other")
level.set(7)
print("ready", flush=True)
for line in sys.stdin:
    count.add(int(line))
    print("counted", flush=True)
"""
SHORT_LIVED = """
import sys
from pathlib import Path
from serving.totals import Totals

for number in range(30):
    own = Totals(Path(sys.argv[1]))
    own.counter("asked").add()
    if number % 2:
        own.close()  # the others live until this process ends
"""
ASKED = Number("asked", (("route", "/a"),))
NUMBERS = 3000
"""Of each thread: together more than a new file holds."""


class Other:
    """A replica in another process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def count(self, amount: int) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{amount}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "counted\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def program(source: str, folder: Path) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", source, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)


@contextmanager
def another(folder: Path) -> Iterator[Other]:
    with program(OTHER, folder) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield Other(process)
        process.kill()


def files(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("*.totals"))


def test_what_one_process_wrote_another_reads_at_once(tmp_path: Path) -> None:
    with another(tmp_path) as other, closing(Totals(tmp_path)) as own:
        count = own.counter("asked", route="/a")
        for number in range(1, 101):
            other.count(3)
            assert read(tmp_path).counters == {ASKED: 4 * number - 1}
            count.add()
            assert read(tmp_path).counters == {ASKED: 4 * number}


def test_who_is_killed_goes_on_counting_and_has_no_gauges(tmp_path: Path) -> None:
    with another(tmp_path) as other, closing(Totals(tmp_path)) as own:
        own.counter("asked", route="/a").add(2)
        own.gauge("rows", process="own").set(5)
        other.count(10)
        gauges = read(tmp_path).gauges
        assert {dict(number.labels)["process"]: value for number, value in gauges.items()} == {"own": 5, "other": 7}
        other.kill()
        assert read(tmp_path).counters == {ASKED: 12}
        assert [dict(number.labels) for number in read(tmp_path).gauges] == [{"process": "own"}]
        # Its file is folded by whoever comes next.
        assert len(files(tmp_path)) == 2
        with closing(Totals(tmp_path)):
            assert len(files(tmp_path)) == 2
            assert read(tmp_path).counters == {ASKED: 12}
            assert [dict(number.labels) for number in read(tmp_path).gauges] == [{"process": "own"}]
        with closing(Totals(tmp_path)):
            assert len(files(tmp_path)) == 2
    assert read(tmp_path).gauges == {}


def test_totals_go_on_over_any_number_of_restarts(tmp_path: Path) -> None:
    for number in range(1, 6):
        with closing(Totals(tmp_path)) as own:
            own.counter("asked", route="/a").add()
            own.counter(f"only in {number}").add(number)
            assert read(tmp_path).counters[ASKED] == number
    assert read(tmp_path).counters == {ASKED: 5} | {Number(f"only in {number}"): number for number in range(1, 6)}
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("dies_at", ["unlink", "rename", "fsync"])
def test_whoever_dies_while_folding_counts_nothing_twice_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    for _ in range(3):
        with closing(Totals(tmp_path)) as own:
            own.counter("asked", route="/a").add(4)

    class Died(BaseException):
        pass

    def die(*_: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if dies_at == "fsync" else (Path, dies_at)), die)
        with pytest.raises(Died):
            Totals(tmp_path)
    assert read(tmp_path).counters == {ASKED: 12}
    with closing(Totals(tmp_path)) as own:
        assert read(tmp_path).counters == {ASKED: 12}
        assert len(files(tmp_path)) == 1
        own.counter("asked", route="/a").add()
    assert {path.name.partition(".")[2] for path in (tmp_path / FOLDER).iterdir()} == {"", "totals"}
    with closing(Totals(tmp_path)):
        assert read(tmp_path).counters == {ASKED: 13}


def test_nothing_falls_while_many_start_fold_and_end(tmp_path: Path) -> None:
    last, readings = 0.0, 0
    with ExitStack() as processes:
        together = [processes.enter_context(program(SHORT_LIVED, tmp_path)) for _ in range(3)]
        while any(process.poll() is None for process in together):
            now = read(tmp_path).counters.get(Number("asked"), 0)
            assert now >= last
            last, readings = now, readings + 1
    assert [process.returncode for process in together] == [0] * 3
    assert readings > 20
    assert read(tmp_path).counters == {Number("asked"): 90}
    with closing(Totals(tmp_path)):
        assert read(tmp_path).counters == {Number("asked"): 90}


def entry(key: bytes, value: float) -> bytes:
    padded = key + b" " * (8 - (len(key) + 4) % 8)
    return struct.pack(f"i{len(padded)}sdd", len(key), padded, value, 0.0)


def file(*entries: bytes) -> bytes:
    content = b"".join(entries)
    return struct.pack("ii", 8 + len(content), 0) + content


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "short": b"\x10",
    "text": b"This is a letter to somebody.\n" * 300,
    "cut": file(entry(b'["counter", "asked", {}]', 3.0))[:-4],
    "round in circles": struct.pack("iii", 4096, 0, -24) + bytes(4096),
    "too long a key": struct.pack("iii", 4096, 0, 5000) + bytes(4096),
    "other keys": file(entry(b'"asked"', 3.0)),
    "another kind": file(entry(b'["histogram", "asked", {}]', 3.0)),
    "no labels": file(entry(b'["counter", "asked", 3]', 3.0)),
    "a name that is none": file(entry(b'["counter", ["asked"], {}]', 3.0)),
    "labels that are none": file(entry(b'["counter", "asked", {"route": 3}]', 3.0)),
    "not a number": file(entry(b'["counter", "asked", {}]', float("nan"))),
    "less than nothing": file(entry(b'["counter", "asked", {}]', -1.0)),
    "deep": file(entry(b"[" * 100_000, 3.0)),
    "no UTF-8": file(entry(b"\xff\xfe", 3.0)),
}


def plant(name: str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(DAMAGED[name])


FOREIGN: dict[str, Callable[[Path], object]] = {
    **{name: plant(name) for name in DAMAGED},
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "huge": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_damaged_or_foreign_is_left_out_and_said_once(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Totals(tmp_path)) as own:
        own.counter("asked", route="/a").add(2)
        path = tmp_path / FOLDER / "1-2.totals"
        FOREIGN[name](path)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert read(tmp_path).counters == {ASKED: 2}
        [line] = caplog.messages
        assert str(path) in line
        with closing(Totals(tmp_path)):
            assert read(tmp_path).counters == {ASKED: 2}
            assert os.path.lexists(path), "it may be somebody's"


def test_random_damage_ends_no_reader(tmp_path: Path) -> None:
    with closing(Totals(tmp_path)) as own:
        for number in range(20):
            own.counter("asked", route=str(number)).add(number)
        [path] = files(tmp_path)
    whole, chance = path.read_bytes()[:2000], random.Random(0)
    for number in range(500):
        spoilt = bytearray(whole)
        for _ in range(chance.choice([1, 2, 20])):
            spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
        (tmp_path / FOLDER / f"{number}-0.totals").write_bytes(bytes(spoilt))
        path.unlink()
        path = tmp_path / FOLDER / f"{number}-0.totals"
        read(tmp_path)


def test_a_damaged_base_is_set_aside_and_counting_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with closing(Totals(tmp_path)) as own:
            own.counter("asked", route="/a").add(2)
    (tmp_path / FOLDER / "base").write_bytes(DAMAGED["text"])
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path).counters == {ASKED: 2}
        with closing(Totals(tmp_path)):
            assert read(tmp_path).counters == {ASKED: 2}
    assert len(caplog.messages) == 1
    [aside] = (tmp_path / FOLDER).glob("damaged-*")
    assert aside.read_bytes() == DAMAGED["text"]


def test_what_cannot_be_folded_keeps_nobody_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Totals(tmp_path)) as own:
        own.counter("asked", route="/a").add(2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with closing(Totals(tmp_path)) as own:
        own.counter("asked", route="/a").add(2)
        assert read(tmp_path).counters == {ASKED: 4}
    assert "No space left on device" in caplog.text


def test_threads_count_in_old_and_new_numbers_while_the_file_grows(tmp_path: Path) -> None:
    with closing(Totals(tmp_path)) as own:
        shared = own.counter("asked", route="/a")

        def count(thread: int) -> None:
            for number in range(NUMBERS):
                shared.add()
                own.counter("asked", route=f"/{thread}/{number}").add(number)
                own.counter("asked", route="/both").add()

        threads = [threading.Thread(target=count, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [path] = files(tmp_path)
        assert path.stat().st_size > FILE_BYTES
        found = {dict(number.labels)["route"]: value for number, value in read(tmp_path).counters.items()}
    assert found.pop("/a") == found.pop("/both") == 2 * NUMBERS
    assert found == {f"/{thread}/{number}": number for thread in range(2) for number in range(NUMBERS)}


def test_a_counter_never_falls_and_nothing_counts_after_the_end(tmp_path: Path) -> None:
    own = Totals(tmp_path)
    count = own.counter("asked", route="/a")
    count.add()
    with pytest.raises(ValueError, match="cannot fall by 2"):
        count.add(-2)
    own.close()
    own.close()
    count.add()
    assert read(tmp_path).counters == {ASKED: 1}


def test_without_its_folder_nothing_is_read_and_counting_goes_on(tmp_path: Path) -> None:
    """As where somebody clears temporary folders by their age."""
    with closing(Totals(tmp_path / "state")) as own:
        count = own.counter("asked", route="/a")
        for path in [*(tmp_path / "state" / FOLDER).iterdir()]:
            path.unlink()
        (tmp_path / "state" / FOLDER).rmdir()
        count.add()
        assert read(tmp_path / "state").counters == {}


def test_the_files_are_for_this_user_alone(tmp_path: Path) -> None:
    with closing(Totals(tmp_path / "new" / "state")):
        made = [tmp_path / "new" / "state", tmp_path / "new" / "state" / FOLDER]
        assert [path.stat().st_mode & 0o777 for path in made] == [0o700, 0o700]
        assert {path.stat().st_mode & 0o777 for path in made[1].iterdir()} == {0o600}


def test_a_key_is_json(tmp_path: Path) -> None:
    """So that odd labels are no other number's."""
    with closing(Totals(tmp_path)) as own:
        own.counter("asked", route='/"ü, ', method="POST").add()
        own.counter("asked", method="POST", route='/"ü, ').add()
    assert read(tmp_path).counters == {Number("asked", (("method", "POST"), ("route", '/"ü, '))): 2}
    assert json.loads(totals.key_of("counter", "asked", {"b": "1", "a": "2"})) == [
        "counter",
        "asked",
        {"a": "2", "b": "1"},
    ]
