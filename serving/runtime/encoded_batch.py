"""What the encoder gives for a batch of sources."""

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


class EncodedBatch(Protocol):
    """Sources that went through the encoder together; their arrays stay where they were computed."""

    @property
    def positions(self) -> int:
        """Of each source, padding included."""

    @property
    def caches(self) -> Mapping[str, Any]:
        """The keys and values ``[sources, heads, positions, head_width]`` of encoder-decoder attention, by the names of
        the decoder's caches (``cross_key_0`` and so on)."""

    def memory(self, index: int, length: int) -> Array:
        """The encoder's output ``[length, width]`` fp32 for one source, in the host's memory."""
