"""What a service did at one rate."""

from typing import NamedTuple

from loadtest.latency import Latency


class Point(NamedTuple):
    """What a service did at one rate."""

    rate: float
    """Requests a second that came, on average; infinite when all came at once, 0 when each waited for the last."""
    latency: Latency
    tokens_per_second: float
    """Target tokens answered, from the first request to the last answer."""
    padding_share: float
    """Of the positions that the encoder, of this service only its attention, worked on."""
    cores: float
    """Processor seconds of the service a second."""
    memory_bytes: int
    """Of the service, at the end."""
