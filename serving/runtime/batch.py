"""The decoder batch: slots, the rows they have, and the cache and the graph behind the rows.

The life of a row: `RowBatch.admit` puts a source into a free row and gives a slot. `step` runs the graph and goes on
with the likeliest token in every row; where fewer rows make a step faster, it first copies the last ones into those
that have been freed. For a search `reorder` then replaces that token, and copies the rows of hypotheses that fork.
Whoever has the slot calls `release`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from serving.runtime.encoded_batch import EncodedBatch
from serving.runtime.row_state import RowState
from serving.runtime.rows import Continuation, Copy, Rows, Slot
from serving.runtime.step_result import Ask, StepArrays, StepResult, Written

SHARED_K = 32
"""The most tokens that a step finds for all its rows because one of them wants as many: the widest beam's. Who wants
more chooses from all tokens, at the price of a row or two for each of its own, not of one for everybody's. Where a step
does not give all tokens, it finds more for everybody."""

Array = NDArray[Any]


class CacheCopy(NamedTuple):
    """Keys and values of row ``origin`` that belong into ``row`` as well."""

    origin: int
    row: int
    written: int
    """Of the target: the first so many positions."""
    read: int
    """Of the source: the same; 0 where both rows have it."""


class Cache(Protocol):
    """The keys and values of all rows, wherever they lie."""

    def store(self, row: int, encoded: EncodedBatch, index: int, length: int) -> None:
        """Put the source at ``index`` of ``encoded``, of ``length`` tokens, into ``row``."""

    def forget(self, row: int) -> None:
        """Nobody needs what is in ``row``; never fails."""

    def copy(self, copies: Sequence[CacheCopy]) -> None:
        """Make ``copies``, in any order or at once."""

    def written(self, positions: Array) -> None:
        """Take note that a step has written the first ``positions`` ``[n]`` of the target in the first n rows."""

    def deep(self) -> list[int]:
        """The rows that hold memory beyond what a row keeps when it is done."""

    def give_back(self, rows: Sequence[int]) -> None:
        """Give the memory of unused ``rows`` back to the system, or of the first of them where that takes long."""


class Decoder(Protocol):
    """The decoder graph over a cache and a state."""

    packed: bool
    """Whether a step is faster with fewer rows, so that those in use should have no holes between them."""
    gives_log_softmax: bool
    """Whether a step can give the log-probabilities of all tokens: not of a bundle written before, nor on a device."""

    def step(self, rows: int, k: int, whole: bool) -> StepArrays:
        """One step for the first ``rows`` rows, each at its own position; the cache is written in place.

        It finds the ``k`` likeliest tokens of each row; with ``whole`` also the log-probabilities of all tokens.
        """


class RowBatch:
    """`serving.runtime.interface.DecoderBatch` in rows."""

    def __init__(self, state: RowState, cache: Cache, decoder: Decoder, vocabulary: int) -> None:
        self.rows = len(state.token)
        self._rows = Rows()
        self._state, self._cache, self._decoder, self._vocabulary = state, cache, decoder, vocabulary
        self._untidy = False
        """Whether freed rows may hold memory that nobody needs."""
        self._tidied = False
        """Whether some of it was given back since the last step: all of it at once would make the next one late."""

    def __len__(self) -> int:
        return len(self._rows)

    def admit(self, encoded: EncodedBatch, index: int, length: int, limit: int) -> Slot:
        """See `DecoderBatch`."""
        self._tidy_once()  # before somebody is placed there
        slot = self._rows.place()
        try:
            self._cache.store(slot.row, encoded, index, length)
        except BaseException:
            self.release([slot])
            raise
        self._state.begin(slot.row, length, limit)
        return slot

    def step(self, asks: Sequence[Ask]) -> StepResult:
        """See `DecoderBatch`."""
        self._tidy_once()
        self._tidied = False
        state = self._state
        if self._decoder.packed:
            self._copy(self._rows.pack())
        elif holes := self._rows.holes:
            state.idle(holes)
        rows = len(self._rows.slots)
        for slot, _, given in asks:
            if given is not None:
                state.given[slot.row] = given
        arrays = self._decoder.step(rows, *self._tokens_to_find(asks))
        self._cache.written(state.position[:rows] + 1)
        ended = state.advance(arrays.tokens[:, 0], arrays.log_probabilities[:, 0])
        return StepResult(arrays, [Written(self._rows.slots[row], *state.written(row)) for row in ended])

    def _tokens_to_find(self, asks: Sequence[Ask]) -> tuple[int, bool]:
        """How many of the likeliest tokens the step finds for every row, and whether somebody chooses from all."""
        most = max((ask.k for ask in asks), default=0)
        whole = most > SHARED_K and self._decoder.gives_log_softmax
        shared = max((ask.k for ask in asks if ask.k <= SHARED_K), default=0) if whole else most
        # TopK takes twice as long to find one token as to find two.
        return min(max(2, shared), self._vocabulary), whole

    def reorder(self, continuations: Sequence[Continuation]) -> list[list[Slot]]:
        """See `DecoderBatch`."""
        following: list[list[Slot]] = []
        copies: list[Copy] = []
        for slots, parents, _ in continuations:
            followers, needed = self._rows.follow(slots, parents)
            following.append(followers)
            copies += needed
        self._copy(copies)
        for slots, (_, _, tokens) in zip(following, continuations, strict=True):
            for slot, token in zip(slots, tokens, strict=True):
                self._state.token[slot.row] = token
        return following

    def _copy(self, copies: Sequence[Copy]) -> None:
        if copies:
            position, lengths = self._state.position, self._state.lengths
            self._cache.copy(
                [
                    CacheCopy(origin, row, int(position[origin]), int(lengths[origin]) if with_source else 0)
                    for origin, row, with_source in copies
                ]
            )
            self._state.copy([copy.origin for copy in copies], [copy.row for copy in copies])

    def release(self, slots: Sequence[Slot]) -> None:
        """See `DecoderBatch`."""
        for slot in slots:
            self._cache.forget(slot.row)
        self._rows.release(slots)
        self._untidy = True

    def _tidy_once(self) -> None:
        if not self._tidied:
            self.tidy()
            self._tidied = True

    def tidy(self) -> bool:
        """Give some memory back to the system; see `DecoderBatch`."""
        if self._untidy:
            unused = [row for row in self._cache.deep() if not self._rows.in_use(row)]
            self._cache.give_back(unused)
            self._untidy = bool(unused)
        return self._untidy
