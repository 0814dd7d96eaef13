import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from model.pairs import Pair, read_pairs, write_pairs


def write_plain(path: Path, contents: bytes) -> Path:
    path.write_bytes(contents)
    return path


def write_gzip(path: Path, contents: bytes) -> Path:
    path = path.with_name(path.name + ".gz")
    path.write_bytes(gzip.compress(contents))
    return path


every_format = pytest.mark.parametrize("write", [write_plain, write_gzip], ids=["plain", "gz"])


@every_format
def test_pairs_are_read_with_their_origin(tmp_path: Path, write: Callable[[Path, bytes], Path]) -> None:
    path = write(tmp_path / "pairs.tsv", "Cat\tKatze\r\nDog \u2028 x\tHund\tpets\r\n🐍\tSchlange\n".encode())
    assert read_pairs(path) == [
        Pair("Cat", "Katze", "all"),
        Pair("Dog \u2028 x", "Hund", "pets"),
        Pair("🐍", "Schlange", "all"),
    ]


@every_format
@pytest.mark.parametrize("bad", [b"alone", b"", b"a\tb\tc\td", b"caf\xe9\tb"])
def test_a_bad_line_is_named(tmp_path: Path, write: Callable[[Path, bytes], Path], bad: bytes) -> None:
    path = write(tmp_path / "pairs.tsv", b"a\tb\nc\td\n" + bad + b"\ne\tf\n")
    with pytest.raises(ValueError, match=r"pairs\.tsv.*line 3"):
        read_pairs(path)


@pytest.mark.parametrize("contents", [b"Cat\tKatze\n", gzip.compress(b"Cat\tKatze\n")[:-9]], ids=["plain", "cut short"])
def test_a_file_that_is_not_whole_is_named(tmp_path: Path, contents: bytes) -> None:
    path = write_plain(tmp_path / "pairs.tsv.gz", contents)
    with pytest.raises(ValueError, match=r"pairs\.tsv\.gz is not a whole gzip file"):
        read_pairs(path)


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "pairs.tsv", "\ufeffCat\tKatze\n".encode())
    assert read_pairs(path) == [Pair("Cat", "Katze", "all")]


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.tsv.gz"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    pairs = [Pair("Cat", "Katze", "pets"), Pair("Two\nlines\tof it", "Zwei Zeilen", "all")]
    write_pairs(tmp_path / name, pairs)
    assert read_pairs(tmp_path / name) == [pairs[0], Pair("Two lines of it", "Zwei Zeilen", "all")]


def test_what_was_there_stays_when_pairs_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    write_pairs(path, [Pair("Cat", "Katze", "pets")])
    with pytest.raises(UnicodeEncodeError):
        write_pairs(path, [Pair("Dog", "Hund \ud800", "pets")])
    (tmp_path / "pairs.tsv.partial").mkdir()  # nothing can be written there
    with pytest.raises(IsADirectoryError):
        write_pairs(path, [Pair("Dog", "Hund", "pets")])
    assert read_pairs(path) == [Pair("Cat", "Katze", "pets")]
