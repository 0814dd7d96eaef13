"""All of it: from packages to pairs."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from model.debian.apt import DebianError, indices, unpack
from model.debian.sources import SOURCES
from model.pairs import Pair

UNREADABLE = "\ufffd"
"""What bytes that are not UTF-8 are read as; nobody should learn to write it."""


def gather(origins: Iterable[str], console: Console, missing: list[str]) -> Iterator[Pair]:
    """Pairs of ``origins`` out of `SOURCES`; packages are downloaded and unpacked into a folder that is removed.

    What this release does not have is told on ``console`` and left out; origins and packages without which the text is
    not whole are added to ``missing``. DebianError when nothing could be had.
    """
    chosen = {origin: SOURCES[origin] for origin in origins}
    had, failure = False, None
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as progress:
        bar = progress.add_task("packages", total=len(chosen))
        archives = Path(folder) / "archives"
        archives.mkdir()
        for origin, source in chosen.items():
            progress.update(bar, description=origin)
            unpacked = Path(folder) / origin
            unpacked.mkdir()
            try:
                if source.packages:
                    missing += unpack(source.packages.split(), archives, unpacked, console)
                else:
                    indices(unpacked)
            except DebianError as error:
                failure = error
                missing.append(origin)
                console.print(f"{origin} is left out: {error}", markup=False, highlight=False)
            else:
                had = True
                count = 0
                for english, german in source.read(unpacked):
                    if UNREADABLE not in english + german:
                        count += 1
                        yield Pair(english, german, origin)
                console.print(f"{origin}: {count:,} pairs", highlight=False)
                if not count:
                    missing.append(origin)
            shutil.rmtree(unpacked)
            progress.advance(bar)
    if failure and not had:
        raise failure
