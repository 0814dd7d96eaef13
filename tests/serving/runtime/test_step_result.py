import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.runtime.rows import Slot
from serving.runtime.step_result import Ask, StepArrays, StepResult, k_best


@given(st.lists(st.sampled_from([-9.0, -2.5, -1.0, -0.0, 0.0, 3.0]), min_size=1, max_size=40), st.integers(1, 50))
def test_of_tokens_that_are_equally_likely_the_first_is_the_best(likely: list[float], k: int) -> None:
    expected = sorted(range(len(likely)), key=lambda token: (-likely[token], token))[:k]
    assert k_best(np.array(likely, np.float32), k) == (expected, [likely[token] for token in expected])


@pytest.mark.parametrize("row", [0, 1])
def test_candidates_are_those_of_the_slots_row_and_of_all_tokens_where_more_are_wanted(row: int) -> None:
    likely = np.log(np.array([[0.1, 0.2, 0.4, 0.3], [0.4, 0.3, 0.2, 0.1]], np.float32))
    tokens = np.array([[2, 3], [0, 1]])
    given_ = np.array([-7.0, -8.0], np.float32)
    arrays = StepArrays(tokens, np.take_along_axis(likely, tokens, 1), given_, likely)
    step = StepResult(arrays, [])
    assert step.candidates(Ask(Slot(row), 1)).tokens == tokens[row, :1].tolist()
    assert step.candidates(Ask(Slot(row), 2)).tokens == tokens[row].tolist()
    assert step.candidates(Ask(Slot(row), 3)).tokens == [[2, 3, 1], [0, 1, 2]][row]
    assert step.candidates(Ask(Slot(row), 2)).given == given_[row]
    without = StepResult(arrays._replace(log_softmax=None), [])
    assert without.candidates(Ask(Slot(row), 3)).tokens == tokens[row].tolist()
