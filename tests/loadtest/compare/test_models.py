import json
from pathlib import Path

from loadtest.compare.models import DESCRIPTION, Line, Model

LINES = [Line("One.", 3), Line("Two words.", 7), Line("Three whole words.", 12)]


def model(fixed: bool) -> Model:
    return Model("any", Path("nowhere"), 4, fixed, LINES)


def test_a_request_with_random_weights_says_how_long_its_translation_is() -> None:
    tokens = {line.text: line.tokens for line in LINES}
    for request in model(fixed=True).requests(4, [0.5, 1.0, 1.5, 9.0], seed=3):
        expected = tokens[request.body["text"]]
        assert request.body == {
            "text": request.body["text"],
            "beam_size": 4,
            "min_tokens": expected,
            "max_tokens": expected,
        }
        assert request.tokens == expected


def test_a_trained_model_ends_its_translations_itself() -> None:
    for request in model(fixed=False).requests(1, [0.0] * 9, seed=0):
        assert set(request.body) == {"text"}


def test_requests_are_due_when_told_and_the_same_for_the_same_seed() -> None:
    times = [number / 7 for number in range(50)]
    found = model(fixed=False).requests(1, times, seed=1)
    assert [request.due for request in found] == times
    assert {request.body["text"] for request in found} == {line.text for line in LINES}
    assert found == model(fixed=False).requests(1, times, seed=1) != model(fixed=False).requests(1, times, seed=2)


def test_a_model_is_read_from_its_description(tmp_path: Path) -> None:
    (tmp_path / DESCRIPTION).write_text(json.dumps({"name": "paper", "language": 5, "fixed": True, "lines": LINES}))
    found = Model.load(tmp_path)
    assert found == Model("paper", tmp_path, 5, True, LINES)
    assert found.tokenizer == tmp_path / "bundle" / "tokenizer.model"
