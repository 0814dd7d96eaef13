import pytest

from serving.bench.client import AnswerError, Client
from tests.loadtest.stub import Stub, served
from tests.serving.bench.stubs import port_of


class Echo(Stub):
    """Answers with what was sent, and notes who sent it and how."""

    asked: list[tuple[str, tuple[str, int], str | None]]

    def post(self) -> None:
        self.asked.append((self.path, self.client_address, self.headers["Connection"]))
        self.answer(200, self.body())


@pytest.mark.parametrize("keep", [True, False])
def test_whole_answers_are_read_over_one_connection_or_many(keep: bool) -> None:
    handler = type("Noting", (Echo,), {"asked": []})
    body = b"x" * 300_000
    with served(handler) as url, Client(port_of(url), "/there", body, keep) as client:
        assert [client.ask() for _ in range(3)] == [body] * 3
    assert [route for route, _, _ in handler.asked] == ["/there"] * 3
    assert len({address for _, address, _ in handler.asked}) == (1 if keep else 3)
    assert {said for _, _, said in handler.asked} == {None if keep else "close"}


@pytest.mark.parametrize(
    ("status", "missing", "said"), [(503, 0, "503 Service Unavailable', not 200"), (200, 5, "ended before the answer")]
)
def test_nothing_else_is_taken_for_an_answer(status: int, missing: int, said: str) -> None:
    class Bad(Stub):
        def post(self) -> None:
            self.body()
            self.answer(status, b"part", missing)

    with served(Bad) as url, Client(port_of(url), "/", b"{}") as client, pytest.raises(AnswerError, match=said):
        client.ask()


def test_an_answer_of_unknown_length_is_refused() -> None:
    class Endless(Stub):
        def post(self) -> None:
            self.body()
            self.send_response(200)
            self.end_headers()
            self.close_connection = True

    with served(Endless) as url, Client(port_of(url), "/", b"{}") as client, pytest.raises(AnswerError, match="Length"):
        client.ask()
