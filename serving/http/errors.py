"""What can go wrong with a request before anybody asks what it wants."""

from collections.abc import Collection

from serving.errors import ServiceError, TooLarge


class NotFound(ServiceError):
    """No such route."""

    kind = "Not found"


class MethodNotAllowed(ServiceError):
    """The route exists, but not for this method."""

    kind = "Method not allowed"

    def __init__(self, path: str, method: str, allowed: Collection[str]) -> None:
        self.allowed = ", ".join(sorted(allowed))
        """Methods."""
        super().__init__(f"{path} takes {self.allowed}, not {method}")


class RequestTimeout(ServiceError):
    """The request has not come to its end in time."""

    kind = "Request timeout"

    def __init__(self, part: str, seconds: float) -> None:
        super().__init__(f"{part}: not there within {seconds:.3g} s", field=part, limit=seconds, unit="seconds")


class HeadersTooLarge(TooLarge):
    """The request's line and headers are over their limit."""

    kind = "Headers too large"


class UnsupportedEncoding(ServiceError):
    """The body is compressed in a way that is not read here."""

    kind = "Unsupported encoding"

    def __init__(self, encoding: str, supported: str) -> None:
        self.supported = supported
        super().__init__(f"Content-Encoding: {encoding!r} is not read here; send {supported}, or none")


class UnsupportedCoding(ServiceError):
    """The request's message is coded for its way in another form than in chunks."""

    kind = "Not implemented"

    def __init__(self, coding: str) -> None:
        super().__init__(f"Transfer-Encoding: {coding!r} is not read here; send chunked, or Content-Length")


class UnsupportedVersion(ServiceError):
    """The request is of another version of HTTP."""

    kind = "Version not supported"

    def __init__(self, version: str) -> None:
        super().__init__(f"HTTP/{version} is not spoken here; send HTTP/1.1")
