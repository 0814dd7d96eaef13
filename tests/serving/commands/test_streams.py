"""Standard streams that are not what one expects: each is one clear line, and text is UTF-8 both ways."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.servers import clean_environment
from tests.conftest import SMALL
from tests.service import dragoman

ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
TEXT = "The café is “open” – 東京.\n".encode()


def shell(line: str, *arguments: str | Path) -> "subprocess.CompletedProcess[bytes]":
    """Run ``line``, in which ``dragoman`` is the command and $1 and so on are ``arguments``."""
    command = f"dragoman() {{ '{sys.executable}' -m serving.cli \"$@\"; }}\n{line}"
    run = ["bash", "-c", command, "bash", *map(str, arguments)]
    return subprocess.run(run, capture_output=True, env=clean_environment(), timeout=300, check=False)


def one_line(done: "subprocess.CompletedProcess[bytes]", said: str) -> None:
    assert done.returncode == 1
    assert said in done.stderr.decode()
    others = [line for line in done.stderr.decode().splitlines() if not line.startswith("ran into its limit")]
    assert len(others) == 1, others


@pytest.mark.parametrize("encoding", ["latin-1", pytest.param("ascii", marks=pytest.mark.slow)])
def test_text_goes_out_as_utf8_in_any_terminal(encoding: str) -> None:
    plain = dragoman("translate", "--bundle", SMALL, given=TEXT)
    other = dragoman("translate", "--bundle", SMALL, given=TEXT, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert (other.returncode, other.stdout) == (0, plain.stdout)
    assert not plain.stdout.isascii()
    assert other.stderr == plain.stderr


def test_so_do_tables() -> None:
    plain, other = (dragoman("translate", "--help", **given) for given in ({}, ASCII))
    assert (other.returncode, other.stdout) == (0, plain.stdout)
    assert not plain.stdout.isascii()


def test_a_byte_order_mark_is_not_text(tiny_bundle: Path) -> None:
    plain = dragoman("translate", "--bundle", tiny_bundle, given=TEXT + TEXT)
    marked = dragoman("translate", "--bundle", tiny_bundle, given=b"\xef\xbb\xbf" + TEXT + TEXT)
    assert (marked.returncode, marked.stdout) == (0, plain.stdout)


@pytest.mark.parametrize("verb", ["translate", pytest.param("encode", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("streams", "said"),
    [
        ("<&-", "standard input is closed"),
        ("< $2 >&-", "standard output is closed"),
        ("< $2 > /dev/full", "standard output: No space left on device"),
    ],
)
def test_a_stream_that_cannot_be_used_is_one_line(
    tiny_bundle: Path, tmp_path: Path, verb: str, streams: str, said: str
) -> None:
    (tmp_path / "text").write_bytes(TEXT * 3)
    one_line(shell(f"dragoman {verb} --bundle $1 {streams}", tiny_bundle, tmp_path / "text"), said)


def test_a_closed_standard_error_is_no_matter(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT)
    done = shell("dragoman translate --bundle $1 < $2 2>&-", tiny_bundle, tmp_path / "text")
    assert done.returncode == 0
    assert done.stdout.count(b"\n") == 1


def test_a_reader_that_leaves_is_not_told_about(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT * 2000)
    done = shell("dragoman encode --bundle $1 < $2 | head -1", tiny_bundle, tmp_path / "text")
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""


def test_a_disk_that_fills_half_way_keeps_what_was_written(tiny_bundle: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    most, file = 4096, tmp_path / "vectors"
    command = [sys.executable, "-m", "serving.cli", "encode", "--bundle", str(tiny_bundle)]
    with file.open("wb") as output:
        done = subprocess.run(
            command,
            input=TEXT * 200,
            stdout=output,
            stderr=subprocess.PIPE,
            env=clean_environment(),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
            timeout=300,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == b"standard output: File too large\n"
    assert file.stat().st_size == most


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "en-de-small", "--data", "{}"],
        ["evaluate", "en-de-small", "--data", "{}", "--against", "en-de-small"],
        ["vectors", "evaluate", "en-de-small", "--data", "{}"],
        ["train", "{}.run", "--data", "{}", "--dev", "{}"],
        ["corpus", "split", "{}", "{}.parts"],
        ["export", "{}", "{}.bundle"],
        ["export", "--list", "{}"],
        ["translate", "--bundle", "{}"],
    ],
)
def test_a_directory_or_an_unreadable_file_for_a_file_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    folder, secret = tmp_path / "folder", tmp_path / "secret"
    folder.mkdir()
    (folder / "inside").write_text("")
    secret.write_text("One.\tEins.\n")
    secret.chmod(0)
    for path in (folder, *([secret] if os.geteuid() else [])):  # to root all files are readable
        done = dragoman(*(argument.format(path) for argument in arguments), given=b"One.\n")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr.decode(), done.stderr.decode()
        assert str(path) in done.stderr.decode()
