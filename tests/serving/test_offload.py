import asyncio
import threading

import pytest

from serving.offload import SHORT, unless_short


def fail() -> None:
    raise ValueError("no")


@pytest.mark.parametrize(("size", "inside"), [(0, True), (SHORT, True), (SHORT + 1, False)])
def test_what_is_short_is_done_in_the_loop_and_what_is_long_beside_it(size: int, inside: bool) -> None:
    async def run() -> bool:
        return await unless_short(size, threading.get_ident) == threading.get_ident()

    assert asyncio.run(run()) == inside
    with pytest.raises(ValueError, match="no"):
        asyncio.run(unless_short(size, fail))
