"""Attention in float64 numpy: what every exported node must compute."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def by_head(states: Array, heads: int) -> Array:
    """``[b, t, w]`` to ``[b, h, t, d]``."""
    return states.reshape(*states.shape[:2], heads, -1).swapaxes(1, 2)


def attention(query: Array, key: Array, value: Array, visible: Array) -> tuple[Array, Array, Array]:
    """softmax(Q Kᵀ / √d) V of heads ``[b, h, t, d]`` over what is visible: output ``[b, t, w]``, weights, scores."""
    query, key, value = (np.asarray(states, np.float64) for states in (query, key, value))
    scores = np.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
    seen = np.where(visible, scores, -np.inf)
    exponential = np.exp(seen - seen.max(-1, keepdims=True))
    weights = exponential / exponential.sum(-1, keepdims=True)
    output = np.einsum("bhqk,bhkd->bqhd", weights, value)
    return output.reshape(*output.shape[:2], -1), weights, scores
