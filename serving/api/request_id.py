"""What a request is called, in answers and logs."""

import re
import secrets

ID_BYTES = 12
KNOWN_ID = re.compile(rb"[\x21-\x7e]{1,128}")
"""What a client may call a request: visible ASCII without spaces."""


def new_id() -> bytes:
    """An id that no other request has."""
    return secrets.token_hex(ID_BYTES).encode()
