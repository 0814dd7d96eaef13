"""What the users send: sentences, one a line."""

from pathlib import Path

SENTENCES = Path(__file__).with_name("sentences.txt")
"""The project's own: 300 of 1 to 112 words, awkward ones among them."""


def read_sentences(path: Path) -> list[str]:
    """The lines of ``path`` that are not blank; ValueError when there are none."""
    sentences = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not sentences:
        raise ValueError(f"{path} holds no sentences")
    return sentences
