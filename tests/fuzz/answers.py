"""Reading HTTP/1 answers strictly, as h11 does."""

from dataclasses import dataclass

import h11

__all__ = ["Answer", "NotHTTP", "read"]


class NotHTTP(ValueError):
    """What came is not an answer in HTTP/1."""


@dataclass(frozen=True)
class Answer:
    """One complete answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    """Names in lower case."""
    body: bytes
    head: bool = False
    """It answers HEAD."""
    informational: tuple[int, ...] = ()
    """Statuses of the answers before the final one, such as 100."""

    def header(self, name: str) -> str | None:
        return next((value for each, value in self.headers if each == name), None)

    @property
    def closes(self) -> bool:
        """Whether it says that the connection ends with it."""
        return "close" in (self.header("connection") or "").lower()


def read(data: bytes, methods: tuple[str, ...] | None, closed: bool, head: bool) -> tuple[tuple[Answer, ...], bytes]:
    """The complete answers in ``data`` and what is left over; NotHTTP where it is none.

    ``methods`` are those of the requests, in order. Where they are not known, ``head`` says whether one may be HEAD; an
    answer is then read in whichever way it is well-formed. ``closed``: nothing follows.
    """
    if not data:
        return (), b""
    candidates = ["GET", "HEAD"] if head and methods is None else ["GET"]
    if methods:
        candidates = [methods[0]]
    failure, incomplete = NotHTTP("nothing"), False
    for method in candidates:
        try:
            answer, rest = _one(data, method, closed)
            if answer is None:
                incomplete = True
                continue
            following = None if methods is None else methods[1:]
            others, rest = read(rest, following, closed, head)
        except NotHTTP as error:
            failure = error
        else:
            return (answer, *others), rest
    if incomplete:
        return (), data
    raise failure


def _one(data: bytes, method: str, closed: bool) -> tuple[Answer | None, bytes]:
    """The first answer, None unless it is complete, and what follows it."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    informational: list[int] = []
    response, body = None, bytearray()
    try:
        connection.receive_data(data)
        if closed:
            connection.receive_data(b"")
        while True:
            event = connection.next_event()
            if isinstance(event, h11.InformationalResponse):
                informational.append(event.status_code)
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return None, data
    except h11.RemoteProtocolError as error:
        if closed and "closed" in str(error):
            return None, data
        raise NotHTTP(str(error)) from None
    assert response
    headers = tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.headers)
    answer = Answer(response.status_code, headers, bytes(body), method == "HEAD", tuple(informational))
    return answer, connection.trailing_data[0]
