"""The server's own stage timings, as its answers carry them."""


def server_timing(header: str) -> dict[str, float]:
    """Stages and milliseconds of a ``Server-Timing`` header (W3C Server Timing)."""
    stages = {}
    for entry in header.split(","):
        name, _, parameters = entry.strip().partition(";")
        key, _, value = parameters.strip().partition("=")
        if key == "dur":
            stages[name] = float(value)
    return stages


def percentile(values: list[float], share: float) -> float:
    """The value that ``share`` of ``values`` do not exceed (nearest rank)."""
    return sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
