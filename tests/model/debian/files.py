"""Files as packages have them."""

import gzip
from pathlib import Path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = text.encode()
    path.write_bytes(gzip.compress(contents) if path.suffix == ".gz" else contents)


DING = """# comment
Katze {f}; Mieze {f} [ugs.] | Katzen {pl} :: cat; kitty | cats
Das ist gut. :: That is good.
in der Klemme sitzen (Redewendung) :: to be in a real fix
eins | zwei :: one
Ekel vor etw. :: disgust with sth.
jdn./etw. jdm./etw. vorziehen :: to prefer sb./sth. to sb./sth. /PREF/
"""
"""A dictionary."""
