"""The small arrays of a batch; greedy search in them against `Single`, which is asked at every step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import END
from serving.engine.decoding import Decoding, Sampling
from serving.engine.search import Single, search_for
from serving.runtime.row_state import RowState
from serving.runtime.step_result import Candidates

TOKENS = st.sampled_from([END, 7, 8, 9])


@given(
    limits=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    steps=st.lists(st.lists(TOKENS, min_size=5)),
    data=st.data(),
)
def test_rows_end_when_and_as_a_search_of_their_own_would(
    limits: list[int], steps: list[list[int]], data: st.DataObject
) -> None:
    """Rows that move in between, beside one that is searched in another way."""
    other = len(limits)
    state = RowState(len(limits) + 1, 8)
    searches = {row: Single(Decoding(limit)) for row, limit in enumerate(limits)}
    for row, limit in enumerate(limits):
        state.begin(row, 3, limit)
    state.begin(other, 3, 0)
    for number, drawn in enumerate(steps):
        best = np.array([*drawn[: len(limits)], END])
        likely = np.float32(-0.5) - np.arange(len(best), dtype=np.float32) - number
        expected = []
        for row, search in searches.items():
            found = Candidates([int(best[row])], [float(likely[row])], 0.0)
            if not search.advance([found]):
                expected.append(row)
        assert [row for row in state.advance(best, likely) if row in searches] == sorted(expected)
        assert state.token.tolist() == best.tolist()
        for row in expected:
            at_once = Single(Decoding(8))
            at_once.finish(*state.written(row))
            assert at_once.hypotheses == searches.pop(row).hypotheses
        state.position[[row not in searches for row in range(len(best))]] = 0  # nobody's
        if searches:
            origin = data.draw(st.sampled_from(sorted(searches)))
            free = [row for row in range(other) if row not in searches]
            if free:
                row = free[0]
                state.copy([origin], [row])
                assert state.position[row] == state.position[origin]
                searches[row] = searches.pop(origin)
                state.begin(origin, 3, 0)


def test_a_row_that_is_searched_in_another_way_never_ends_here() -> None:
    state = RowState(2, 4)
    state.begin(0, 3, 2)
    state.begin(0, 3, 0)
    assert state.advance(np.array([END, END]), np.zeros(2, np.float32)) == []


def test_rows_are_copied_all_at_once() -> None:
    state = RowState(4, 3)
    state.token[:], state.position[:], state.given[:], state.lengths[:] = range(4), range(10, 14), range(5, 9), 7
    state.copy([0, 1, 2], [1, 2, 3])
    assert state.token.tolist() == [0, 0, 1, 2]
    assert state.position.tolist() == [10, 10, 11, 12]
    assert state.given.tolist() == [5, 5, 6, 7]


@pytest.mark.parametrize(
    ("decoding", "plain"),
    [
        (Decoding(9), True),
        (Decoding(9, min_tokens=1), True),
        (Decoding(9, min_tokens=2), False),
        (Decoding(9, no_repeat_ngram=3), False),
        (Decoding(9, prefix=(7,)), False),
        (Decoding(9, sampling=Sampling()), False),
        (Decoding(9, beam_size=2), False),
    ],
)
def test_only_where_nothing_is_to_be_decided_the_search_is_not_asked(decoding: Decoding, plain: bool) -> None:
    assert search_for(decoding).plain == plain
