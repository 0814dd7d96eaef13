"""Whether a client takes what it is sent."""

import asyncio
import fcntl
import struct
import termios


class Flow:
    """One connection's way out."""

    def __init__(self) -> None:
        self._writable: asyncio.Future[None] | None = None
        self._unsent = 0

    @property
    def blocked(self) -> bool:
        """Whether so much waits for the client that nothing more is to be written."""
        return self._writable is not None

    def block(self) -> None:
        """Note that too much waits."""
        self._writable = asyncio.get_running_loop().create_future()

    def unblock(self) -> None:
        """Note that less waits again, or nobody is there."""
        if self._writable:
            self._writable.set_result(None)
        self._writable = None

    async def drained(self) -> None:
        """Return when more can be written."""
        if self._writable:
            await asyncio.shield(self._writable)

    def moves(self, transport: asyncio.Transport) -> bool:
        """Whether the client has taken anything since this was asked before."""
        before, self._unsent = self._unsent, unsent(transport)
        return self._unsent < before


def unsent(transport: asyncio.Transport) -> int:
    """Bytes that the other side has not taken yet, those included that the system keeps."""
    try:
        kept = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):  # it is closed
        return 0
    return transport.get_write_buffer_size() + int(struct.unpack("i", kept)[0])
