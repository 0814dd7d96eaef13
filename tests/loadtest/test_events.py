import pytest

from loadtest.events import ending

DELTA = 'event: delta\ndata: {"index":0,"text":"event: result"}\n\n'
RESULT = 'event: result\ndata: {"model":"any"}\n\n'


def error(data: str) -> str:
    return f"event: error\ndata: {data}\n\n"


@pytest.mark.parametrize(
    ("content", "ended"),
    [
        (RESULT, 200),
        (DELTA + DELTA + RESULT, 200),
        (error('{"status": 504}'), 504),
        (DELTA + error('{"title": "Too many requests", "status": 429}'), 429),
        (DELTA + error('{"status": 500}'), 500),
        ("", "ended without a result"),
        (DELTA, "ended without a result"),
        (RESULT + DELTA, "ended without a result"),
        (DELTA + RESULT[:-1], "ended without a result"),
        (DELTA[:-1] + RESULT, "ended without a result"),
        ('{"translations": []}', "ended without a result"),
        (error("{}"), "ended in an error without a status"),
        (error("[504]"), "ended in an error without a status"),
        (error("504 or so"), "ended in an error without a status"),
        (error('{"status": null}'), "ended in an error without a status"),
    ],
)
def test_the_last_event_says_how_a_stream_ended(content: str, ended: int | str) -> None:
    assert ending(content) == ended
