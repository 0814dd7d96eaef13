import re
from pathlib import Path

import pytest

from model.evaluation_sets import read_sets
from model.pairs import Pair, read_pairs, write_pairs

PAIRS = [Pair("One.", "Eins.", "web")]


def test_sets_go_by_the_names_of_their_files(tmp_path: Path) -> None:
    for name in ("dev.tsv", "test.2013.tsv.gz"):
        write_pairs(tmp_path / name, PAIRS)
    sets = read_sets([tmp_path / "dev.tsv", tmp_path / "test.2013.tsv.gz"], read_pairs)
    assert sets == [("dev", PAIRS), ("test.2013", PAIRS)]


def test_sets_of_one_name_and_empty_ones_are_refused(tmp_path: Path) -> None:
    for name in ("dev.tsv", "dev.tsv.gz"):
        write_pairs(tmp_path / name, PAIRS)
    with pytest.raises(ValueError, match=re.escape("dev.tsv.gz: another set is called dev as well; rename the file")):
        read_sets([tmp_path / "dev.tsv", tmp_path / "dev.tsv.gz"], read_pairs)
    (tmp_path / "empty.tsv").touch()
    with pytest.raises(ValueError, match=re.escape("empty.tsv: the file has no pairs; give one with a pair a line")):
        read_sets([tmp_path / "empty.tsv"], read_pairs)
