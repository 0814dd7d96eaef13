"""This engine without a server: ``python -m loadtest.compare.offline BUNDLE`` prints its target tokens a second.

The bodies of requests come as a JSON list on standard input; all are translated at once. A process of its own, as
gevent's patches would disturb the engine's thread.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from serving.api.schemas import TranslateRequest
from serving.pipeline import Pipeline
from serving.settings import Settings


async def tokens_per_second(bundle: Path, bodies: list[dict[str, Any]]) -> float:
    """Of the model in ``bundle``, given all of ``bodies`` at once when it is warm."""
    pipeline = Pipeline.offline(Settings(bundle=bundle))
    try:
        await pipeline.warm_up()
        asked = [TranslateRequest.model_validate(body) for body in bodies]
        begin = time.perf_counter()
        answers = await asyncio.gather(
            *(pipeline.translate(each.text, *pipeline.pair(None, None), each) for each in asked)
        )
        seconds = time.perf_counter() - begin
    finally:
        pipeline.close()
    return sum(found.tokens for translations, _ in answers for found in translations) / seconds


if __name__ == "__main__":
    print(asyncio.run(tokens_per_second(Path(sys.argv[1]), json.load(sys.stdin))))
