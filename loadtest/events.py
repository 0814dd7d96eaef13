"""How an answer of server-sent events ended."""

import json
import re

_LAST = re.compile(r"(?:\A|\n\n)event: (result|error)\ndata: (.*)\n\n\Z")


def ending(content: str) -> int | str:
    """The status that a stream's last event stands for: 200 for a ``result``, its problem's for an ``error``.

    A stream that ends otherwise has none; what is wrong with it is said in words.
    """
    last = _LAST.search(content)
    if not last:
        return "ended without a result"
    if last[1] == "result":
        return 200
    try:
        return int(json.loads(last[2])["status"])
    except (KeyError, TypeError, ValueError):
        return "ended in an error without a status"
