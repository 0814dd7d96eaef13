"""What an engine has done."""


class Work:
    """Counted since the engine started; its thread alone calls the methods, each before the result is delivered."""

    def __init__(self) -> None:
        self.source_tokens = 0
        """Encoded."""
        self.padded_tokens = 0
        """Positions the encoder's attention worked on for them, padding included."""
        self.steps = 0
        """Of decoding."""
        self.rows = 0
        """Decoded in all steps: divided by them, the rows of a step on average."""

    def encoded(self, tokens: int, positions: int) -> None:
        """Count sentences of so many source ``tokens``, which took ``positions`` with their padding."""
        self.source_tokens += tokens
        self.padded_tokens += positions

    def stepped(self, rows: int) -> None:
        """Count a decoding step of so many ``rows``."""
        self.steps += 1
        self.rows += rows
