"""How far the log-probabilities of two computations agree, token by token."""

from typing import NamedTuple

from torch import Tensor

NEAR_TIE = 0.02
"""In nats. Where the reference's best two tokens lie within it of each other, fp16 may like the other one better: from
16 on, neighbouring fp16 numbers are 0.016 apart, and so are logits."""


class Agreement(NamedTuple):
    """What was counted and measured over the tokens of a batch, teacher-forced."""

    equal: int
    """Tokens at which both like the same token best."""
    near_ties: int
    """Tokens at which the reference's best two lie within `NEAR_TIE`."""
    exempt: int
    """Of those at which another token is liked best: where it is one of a near-tie, within `NEAR_TIE` of the best."""
    errors: Tensor
    """``[n]``, nats: each token's largest difference over the whole vocabulary."""
    best_errors: Tensor
    """``[n]``, nats: the difference at the token that the reference likes best."""


def agreement(computed: Tensor, expected: Tensor, inside: Tensor) -> Agreement:
    """Compare log-probabilities ``[b, t, vocabulary]`` with those of the reference where ``inside`` ``[b, t]``."""
    liked, best = computed.argmax(-1, keepdim=True), expected.argmax(-1, keepdim=True)
    first, second = expected.topk(2, dim=-1).values.unbind(-1)
    equal = (liked == best)[..., 0]
    behind = first - expected.gather(-1, liked)[..., 0]
    return Agreement(
        equal=int(equal[inside].sum()),
        near_ties=int((first - second <= NEAR_TIE)[inside].sum()),
        exempt=int((~equal & (behind <= NEAR_TIE))[inside].sum()),
        errors=(computed - expected).abs().amax(-1)[inside],
        best_errors=(computed.gather(-1, best)[..., 0] - first).abs()[inside],
    )
