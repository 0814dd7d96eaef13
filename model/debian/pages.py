"""Pages of HTML and Mallard."""

import html.parser
import re
from pathlib import Path

from model.alignment import Block, align, has_word, sentences
from model.debian.texts import Texts, each

_OPENING = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "li", "dt", "dd", "td", "th", "title", "item", "caption", "desc"}
"""Elements of HTML, DocBook and Mallard that open a block."""
_SKIPPED = {"script", "style", "pre", "screen", "head", "credit", "mal:credit", "years"}


class _Page(html.parser.HTMLParser):
    """The blocks of a page of HTML or XML."""

    RCDATA_CONTENT_ELEMENTS = ()  # type: ignore[misc]
    """In Mallard a title has elements."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self._kind, self._skipped = "", 0
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skipped += tag in _SKIPPED
        if tag == "br":
            self._text.append(" ")
        elif tag in ("key", "gui") and self._text[-1:] == [""]:
            self._text.append("+" if tag == "key" else " ▸ ")
        if tag in _OPENING:
            self.flush()
            given = dict(attrs).get("id") or ""
            # LibreOffice's identifiers are the same in all languages; others' are made up anew.
            self._kind = given if re.match(r"(par|hd|bm)_id", given) else tag

    def handle_endtag(self, tag: str) -> None:
        self._skipped = max(0, self._skipped - (tag in _SKIPPED))
        if tag in ("key", "gui"):
            self._text.append("")  # another that follows at once is the next of a sequence
        if tag in _OPENING:
            self.flush()

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self._text.append(data)

    def flush(self) -> None:
        text = " ".join("".join(self._text).split())
        if self._kind and has_word(text):
            self.blocks.append(Block(self._kind, text))
        self._text = []


def _blocks(path: Path) -> list[Block]:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8", errors="replace"))
    page.close()
    page.flush()
    return page.blocks


_MARKS = [
    (r"/de(-DE|_DE)?/", ["/en/", "/en-US/", "/en_US/", "/C/", "/"]),
    (r"\.de\.", [".en.", "."]),
    (r"-de/", ["-en/", "/"]),
]
"""How a German page's path differs from the English one's."""


def _english(german: Path, folder: Path) -> Path | None:
    """The page that ``german`` translates, by its path in ``folder``: the one that differs in most marks."""
    candidates = {f"/{german.relative_to(folder)}": 0}
    for mark, others in _MARKS:
        for path, replaced in list(candidates.items()):
            if re.search(mark, path):
                candidates |= {re.sub(mark, other, path): replaced + 1 for other in others}
    ranked = sorted((-replaced, path) for path, replaced in candidates.items() if replaced)
    return next((page for _, path in ranked if (page := folder / path[1:]).is_file()), None)


def pages(folder: Path) -> Texts:
    """Pages of HTML and Mallard."""

    def read(german: Path) -> Texts:
        if english := _english(german, folder):
            for one, other in align(_blocks(english), _blocks(german)):
                yield from sentences(one, other)

    return each([*folder.rglob("*.html"), *folder.rglob("*.page")], read)
