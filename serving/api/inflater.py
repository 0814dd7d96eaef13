"""Bodies that are compressed with gzip."""

import zlib

from serving.errors import Malformed, TooLarge

GZIP = 16 + zlib.MAX_WBITS
"""How zlib is told that a stream has gzip's header and checksum."""


class Inflater:
    """Inflates a body part by part, up to a limit."""

    def __init__(self, limit: int) -> None:
        """``limit``: bytes of what comes out."""
        self._limit, self._size = limit, 0
        self._stream = zlib.decompressobj(GZIP)

    def __call__(self, part: bytes, last: bool) -> bytes:
        """What comes out of the next ``part``; Malformed when it is not gzip, TooLarge past the limit."""
        inflated = b""
        try:
            while part:
                piece = self._stream.decompress(part, self._limit - self._size + 1)
                inflated += piece
                self._size += len(piece)
                if self._size > self._limit:
                    raise TooLarge("body", self._size, self._limit, "bytes or more when inflated")
                # Another member may follow, and zeros as padding (RFC 1952, section 2.2).
                part = self._stream.unused_data.lstrip(b"\0")
                if self._stream.eof and part:
                    self._stream = zlib.decompressobj(GZIP)
        except zlib.error as error:
            raise Malformed(f"body: not gzip: {error}") from None
        if last and not self._stream.eof:
            raise Malformed("body: not gzip: it ends too early")
        return inflated
