import math

import pytest
import torch

from export.agreement import NEAR_TIE, agreement

INSIDE = torch.tensor([[True, True, False]])


def of(*rows: list[float]) -> torch.Tensor:
    """One row of tokens ``[1, t, vocabulary]``."""
    return torch.tensor([rows])


def test_tokens_and_differences_are_counted_where_there_are_tokens() -> None:
    expected = of([-0.1, -3.0, -4.0], [-4.0, -0.1, -3.0], [-0.1, -3.0, -4.0])
    computed = of([-0.2, -3.0, -4.5], [-4.0, -0.1, -3.25], [math.nan] * 3)
    agreed = agreement(computed, expected, INSIDE)
    assert (agreed.equal, agreed.near_ties, agreed.exempt) == (2, 0, 0)
    assert agreed.errors.tolist() == pytest.approx([0.5, 0.25])
    assert agreed.best_errors.tolist() == pytest.approx([0.1, 0.0])


@pytest.mark.parametrize(("gap", "exempt"), [(0.0, 1), (0.5 * NEAR_TIE, 1), (1.5 * NEAR_TIE, 0), (1.0, 0)])
def test_another_token_is_exempt_at_a_near_tie_only(gap: float, exempt: int) -> None:
    expected = of([-0.5, -0.5 - gap, -4.0], [-0.5, -2.0, -4.0], [0.0, 0.0, 0.0])
    computed = of([-0.5 - gap, -0.4, -4.0], [-0.5, -2.0, -4.0], [0.0, 0.0, 0.0])
    agreed = agreement(computed, expected, INSIDE)
    assert (agreed.equal, agreed.near_ties, agreed.exempt) == (1, exempt, exempt)


def test_a_token_that_is_not_of_the_near_tie_is_not_exempt() -> None:
    expected = of([-0.5, -0.51, -0.6], [-0.5, -2.0, -4.0], [0.0, 0.0, 0.0])
    computed = of([-0.6, -0.61, -0.5], [-0.5, -2.0, -4.0], [0.0, 0.0, 0.0])
    agreed = agreement(computed, expected, INSIDE)
    assert (agreed.equal, agreed.near_ties, agreed.exempt) == (1, 1, 0)


def test_nan_is_an_error_of_its_own() -> None:
    expected = of([-0.1, -3.0, -4.0], [-0.1, -3.0, -4.0], [0.0, 0.0, 0.0])
    computed = of([-0.1, math.nan, -4.0], [-0.1, -3.0, -4.0], [0.0, 0.0, 0.0])
    agreed = agreement(computed, expected, INSIDE)
    assert math.isnan(agreed.errors.max())
    assert agreed.exempt == 0
