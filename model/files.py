"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write(path: Path, contents: bytes) -> None:
    """Put ``contents`` where ``path`` is; what was there stays until all of it is written."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(contents)
    os.replace(partial, path)
