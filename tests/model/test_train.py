import io
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import checkpoint
from model.config import ModelConfig
from model.fit_pooling import PoolingSettings
from model.optimizer import Muon
from model.pairs import read_pairs
from model.train import STATE, Run, TrainSettings, average
from tests.conftest import SMALL

MODEL = ModelConfig(
    vocabulary=400,
    width=16,
    heads=2,
    feed_forward=32,
    encoder_layers=1,
    decoder_layers=1,
    max_positions=128,
    dropout=0.1,
)
PRE_NORM = MODEL.model_copy(update={"norm": "pre"})
SETTINGS = TrainSettings(
    name="tiny",
    model=MODEL,
    longest=100,
    tokens=600,
    steps=13,
    learning_rate=1e-2,
    warmup=4,
    precision="fp32",
    save_every=5,
    average=2,
    evaluate_every=6,
    evaluate_sentences=2,
)


@pytest.fixture(autouse=True)
def _interrupts_arrive() -> Iterator[None]:
    """A shell starts what runs in its background with interrupts ignored, and Python leaves that as it is."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    path = tmp_path_factory.mktemp("text") / "pairs.tsv"
    short = [text for text in sentences if 10 < len(text) < 60][:40]
    path.write_text("".join(f"{text}\t{text[::-1]}\n" for text in short), encoding="utf-8")
    return path


Start = Callable[..., Run]


def begin(folder: Path, data: Path, **changes: Any) -> Run:
    return Run(folder, SETTINGS.model_copy(update=changes), [data], data, Console(file=io.StringIO()))


@pytest.fixture
def start(tmp_path: Path, pairs: Path) -> Start:
    """Opens a run in a folder of the given name, anew or where it was left."""
    return lambda name, **changes: begin(tmp_path / name, pairs, **changes)


@pytest.fixture(scope="session")
def through(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Run:
    """A run of `SETTINGS` from its first step to its last."""
    run = begin(tmp_path_factory.mktemp("run") / "through", pairs)
    run.train()
    return run


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(weight, other[name]) for name, weight in one.items())


def outcome(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return run.model.state_dict(), load_file(run.folder / "checkpoint" / checkpoint.WEIGHTS)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_loss_falls(start: Start, optimizer: str) -> None:
    run = start("run", steps=60, optimizer=optimizer, save_every=100, evaluate_every=100)
    before = run.evaluate()["dev_loss"]
    run.train()
    after = run.evaluate()["dev_loss"]
    assert after < 0.75 * before


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_same_settings_repeat_the_weights(start: Start, optimizer: str) -> None:
    one, other = start("one", optimizer=optimizer), start("other", optimizer=optimizer)
    untouched = {name: weight.clone() for name, weight in one.model.state_dict().items()}
    for run in (one, other):
        torch.manual_seed(SETTINGS.seed)  # Both were opened before either trained.
        run.train()
    assert all(map(same, outcome(one), outcome(other)))
    assert not same(one.model.state_dict(), untouched)


def test_another_seed_gives_other_weights(start: Start) -> None:
    one, other = (start(f"{seed}", seed=seed) for seed in (1, 2))
    assert not same(one.model.state_dict(), other.model.state_dict())


def interrupt_in_loss(run: Run) -> None:
    loss = run._loss

    def interrupted(batch: Any, smoothing: float) -> Tensor:
        value = loss(batch, smoothing)
        signal.raise_signal(signal.SIGINT)
        return value

    run._loss = interrupted  # type: ignore[method-assign]


def interrupt_between_optimizers(run: Run) -> None:
    step = run.optimizers[0].step

    def interrupted(*arguments: Any) -> None:
        step(*arguments)
        signal.raise_signal(signal.SIGINT)

    run.optimizers[0].step = interrupted  # type: ignore[method-assign]


def interrupt_in_evaluation(run: Run) -> None:
    def interrupted() -> dict[str, Any]:
        run.model.eval()
        raise KeyboardInterrupt

    run.evaluate = interrupted  # type: ignore[method-assign]


def interrupt_in_saving(run: Run) -> None:
    save = run.save

    def interrupted() -> None:
        run.save = save  # type: ignore[method-assign]
        raise KeyboardInterrupt

    run.save = interrupted  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("steps", "interrupt"),
    [
        (0, interrupt_in_loss),
        (3, interrupt_in_loss),
        (5, interrupt_in_loss),
        (11, interrupt_in_loss),
        (2, interrupt_between_optimizers),
        (9, interrupt_between_optimizers),
        (0, interrupt_in_evaluation),
        (0, interrupt_in_saving),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_end(
    start: Start, through: Run, steps: int, interrupt: Callable[[Run], None]
) -> None:
    stopped = start("stopped")
    update = stopped._update

    def counted(batch: Any) -> tuple[float, int]:
        if stopped.step == steps:
            interrupt(stopped)
        return update(batch)

    stopped._update = counted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert stopped.step < SETTINGS.steps
    torch.manual_seed(12345)
    resumed = start("stopped")
    assert resumed.step == stopped.step
    resumed.train()
    assert resumed.step == through.step == SETTINGS.steps
    assert resumed.tokens_seen == through.tokens_seen
    for expected, found in zip(outcome(through), outcome(resumed), strict=True):
        assert same(expected, found)


def test_two_stops_go_on_to_the_same_end(start: Start, through: Run) -> None:
    for _ in range(2):
        stopped = start("stopped")
        interrupt_in_loss(stopped)
        with pytest.raises(KeyboardInterrupt):
            stopped.train()
    resumed = start("stopped")
    resumed.train()
    assert all(map(same, outcome(through), outcome(resumed)))


def test_what_a_run_began_with_is_needed_at_its_first_start_only(start: Start, tmp_path: Path) -> None:
    small = start("small", steps=1, model=PRE_NORM).train()
    settings = {"initialize_from": small, "model": PRE_NORM.model_copy(update={"encoder_layers": 2}), "steps": 2}
    start("large", **settings).train()
    small.rename(tmp_path / "elsewhere")
    assert start("large", **settings).step == 2
    with pytest.raises(ValueError, match="cannot be used"):
        start("another", **settings)


def test_a_vocabulary_that_is_there_must_have_the_placeholders(start: Start) -> None:
    start("run")
    with pytest.raises(ValueError, match=r"has no piece %s, \{0\}; start in another folder"):
        start("run", placeholders=("{0}", "%s"))


def test_weights_of_origins_that_are_not_there_are_told(pairs: Path, tmp_path: Path) -> None:
    told = io.StringIO()
    settings = SETTINGS.model_copy(update={"weights": {"all": 0.5, "web": 2.0, "placeholders": 0.1}})
    Run(tmp_path / "run", settings, [pairs], pairs, Console(file=told))
    assert "no pairs of web, which weights names" in told.getvalue()


def test_what_teaches_nothing_is_left_out_unless_all_is_wanted(pairs: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice.tsv"
    twice.write_text(2 * pairs.read_text(encoding="utf-8"), encoding="utf-8")
    many = len(read_pairs(pairs))
    assert [len(begin(tmp_path / name, twice, clean=clean).corpus) for name, clean in (("a", True), ("b", False))] == [
        many,
        2 * many,
    ]


def test_a_weight_of_0_leaves_no_copies_with_placeholders(tmp_path: Path, pairs: Path) -> None:
    more = tmp_path / "more.tsv"
    more.write_text("".join(f"take {n} of x\t{n} von x nehmen\tweb\n" for n in range(30)), encoding="utf-8")
    for weight, seen in ((0, False), (1, True)):
        settings = SETTINGS.model_copy(update={"placeholders": ("%9",), "weights": {"web": weight}})
        run = Run(tmp_path / str(weight), settings, [pairs, more], pairs, Console(file=io.StringIO()))
        piece = list(run.tokenizer).index("%9")
        assert any(piece in ids for ids in run.corpus.targets) == seen


def test_a_run_does_not_go_on_with_other_text(start: Start, tmp_path: Path, pairs: Path) -> None:
    start("run", steps=2).train()
    more = tmp_path / "more.tsv"
    more.write_text(pairs.read_text(encoding="utf-8") + "one more\tnoch eins\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds a run on other text"):
        begin(tmp_path / "run", more, steps=3)
    assert start("run", steps=3).step == 2


def test_a_run_of_before_a_setting_existed_goes_on(start: Start) -> None:
    run = start("run", steps=2)
    run.train()
    settings = run.folder / "settings.json"
    stored = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(
        json.dumps({name: value for name, value in stored.items() if name != "clean"}), encoding="utf-8"
    )
    state = torch.load(run.folder / STATE)
    torch.save({name: value for name, value in state.items() if name != "text"}, run.folder / STATE)
    assert start("run", steps=3).step == 2


def test_pairs_of_dev_that_no_model_could_read_are_left_out(tmp_path: Path, pairs: Path) -> None:
    dev, told = tmp_path / "dev.tsv", io.StringIO()
    dev.write_text(f"{'long ' * 200}\tlang\n \tleer\n", encoding="utf-8")
    with pytest.raises(ValueError, match="dev has no pair of at most 100 tokens a side"):
        Run(tmp_path / "run", SETTINGS, [pairs], dev, Console(file=told, width=500))
    assert not (tmp_path / "run" / checkpoint.TOKENIZER).exists()  # other text may come
    dev.write_text(dev.read_text(encoding="utf-8") + pairs.read_text(encoding="utf-8"), encoding="utf-8")
    run = Run(tmp_path / "run", SETTINGS, [pairs], dev, Console(file=told, width=500))
    assert "2 pairs of dev are empty or over 100 tokens" in told.getvalue()
    assert run.dev_pairs == read_pairs(pairs)
    assert run.evaluate()["dev_loss"] > 0


def test_a_run_that_diverges_keeps_what_was_saved(start: Start) -> None:
    run = start("run", steps=5)
    run.train()
    expected = outcome(run)
    broken = start("run", steps=20)
    broken.model.projection.weight.data[7] = float("inf")
    with pytest.raises(ValueError, match=r"step 6: the gradient is not finite.*lower learning_rate \(0\.0"):
        broken.train()
    again = start("run", steps=5)
    assert all(map(same, expected, outcome(again)))


def test_what_a_model_writes_is_printed_as_it_is(pairs: Path, tmp_path: Path) -> None:
    told = io.StringIO()
    run = Run(tmp_path / "run", SETTINGS, [pairs], pairs, Console(file=told, width=500))
    found = run.evaluate()
    example = dict.fromkeys(found["example"], "see [/etc] and [red]")
    run.evaluate = lambda: found | {"example": example}  # type: ignore[method-assign]
    run.train()
    assert "«see [/etc] and [red]»" in told.getvalue()


def test_an_interrupt_works_as_before_after_training(start: Start) -> None:
    handler = signal.getsignal(signal.SIGINT)
    start("run", steps=2).train()
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_finished_run_stays_as_it_is(start: Start) -> None:
    first = start("run")
    first.train()
    again = start("run")
    again.train()
    assert again.step == SETTINGS.steps
    assert all(map(same, outcome(first), outcome(again)))


def test_the_checkpoint_is_the_average_of_the_last_saves(start: Start) -> None:
    run = start("run")
    folder = run.train()
    assert folder == run.folder / "checkpoint"
    saved = sorted(run.folder.glob("step-*.safetensors"))
    assert [file.stem for file in saved] == ["step-0000010", "step-0000013"]
    loaded = checkpoint.load(folder)
    assert (loaded.config.name, loaded.config.pairs, loaded.config.model) == ("tiny", (("en", "de"),), MODEL)
    assert loaded.tokenizer.serialized == run.tokenizer.serialized
    expected = average(saved)
    for name, weight in loaded.model.named_parameters():
        assert torch.equal(weight, expected[name].half().float())


@pytest.mark.parametrize("whole", range(4))
def test_a_save_cut_short_leaves_every_file_whole(start: Start, monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    run = start("run")
    run.train()
    write, written = Path.write_bytes, 0

    def torn(path: Path, contents: bytes) -> int:
        nonlocal written
        written += 1
        if written > whole:
            write(path, contents[: len(contents) // 2])
            raise OSError("no space left on device")
        return write(path, contents)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", torn)
        with pytest.raises(OSError, match="no space"):
            run.save()
    expected = outcome(run)
    checkpoint.load(run.folder / "checkpoint")
    again = start("run")
    assert again.step == SETTINGS.steps
    again.train()
    assert all(map(same, expected, outcome(again)))


def test_the_log_has_a_line_a_report(start: Start) -> None:
    run = start("run", steps=55, save_every=100, evaluate_every=55)
    run.train()
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [50, 55]
    assert lines[0].keys() >= {"step", "loss", "rate", "tokens", "minutes", "tokens_per_second"}
    assert lines[1].keys() - lines[0].keys() == {"dev_loss", "dev_bleu", "example"}
    assert [line["rate"] for line in lines] == [run.settings.rate(49), run.settings.rate(54)]
    assert lines[1]["dev_bleu"].keys() == lines[1]["example"].keys() == {"en-de"}
    assert lines[1]["tokens"] == run.tokens_seen > lines[0]["tokens"]
    assert TrainSettings.model_validate_json((run.folder / "settings.json").read_text()) == run.settings


def test_the_log_has_every_evaluation(start: Start) -> None:
    run = start("run", steps=7, evaluate_every=3)
    run.train()
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "dev_loss" in line] == [3, 6, 7]


def test_a_tokenizer_in_the_folder_is_kept(start: Start, tmp_path: Path) -> None:
    learnt = start("one").tokenizer.serialized
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.model").write_bytes(learnt)
    assert start("other", seed=9).tokenizer.serialized == learnt


BOTH = (("en", "de"), ("de", "en"))


def test_each_pair_is_an_example_in_each_direction(start: Start, pairs: Path) -> None:
    run, read = start("run", pairs=BOTH), read_pairs(pairs)
    for corpus in (run.corpus, run.dev):
        sources, targets = ([ids.tolist() for ids in side] for side in (corpus.sources, corpus.targets))
        assert sources == [
            *(run.tokenizer.source(pair.source, "de") for pair in read),
            *(run.tokenizer.source(pair.target, "en") for pair in read),
        ]
        assert targets == [
            *(run.tokenizer.target(pair.target) for pair in read),
            *(run.tokenizer.target(pair.source) for pair in read),
        ]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_optimizer_multiplies_in_the_precision_of_the_run(start: Start, precision: str, dtype: torch.dtype) -> None:
    run = start("run", precision=precision, optimizer="muon", steps=40, save_every=100, evaluate_every=100)
    before = run.evaluate()["dev_loss"]
    run.train()
    assert [each.dtype for each in run.optimizers if isinstance(each, Muon)] == [dtype]
    assert run.evaluate()["dev_loss"] < before
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())


def test_a_run_learns_and_reports_both_directions(start: Start) -> None:
    run = start("run", pairs=BOTH, steps=6)
    assert checkpoint.load(run.train()).config.pairs == BOTH
    [line] = (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    report = json.loads(line)
    assert report["dev_bleu"].keys() == report["example"].keys() == {"en-de", "de-en"}
    assert start("run", pairs=BOTH, steps=7).step == 6
    with pytest.raises(ValueError, match="holds a run with pairs"):
        start("run")


def test_placeholders_are_pieces_and_seen_in_training(start: Start, tmp_path: Path, pairs: Path) -> None:
    more = tmp_path / "more.tsv"
    more.write_text("".join(f"take {n} of x\t{n} von x nehmen\n" for n in range(30)), encoding="utf-8")
    settings = SETTINGS.model_copy(update={"placeholders": ("%9", "{x}"), "weights": {"placeholders": 0.5}})
    run = Run(tmp_path / "run", settings, [pairs, more], pairs, Console(file=io.StringIO()))
    known = list(run.tokenizer)
    seen = [{known[token] for token in ids} & {"%9", "{x}"} for ids in run.corpus.targets]
    copies = [number for number, found in enumerate(seen) if found]
    assert len(copies) >= 30
    assert set().union(*seen) == {"%9", "{x}"}
    assert set(run.corpus.weights[copies]) == {0.5}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_is_the_plain_loss_a_token(start: Start, precision: str) -> None:
    run = start("run", precision=precision)
    report, total, tokens = run.evaluate(), 0.0, 0
    run.model.eval()
    for source, target in zip(run.corpus.sources, run.corpus.targets, strict=True):
        given = torch.tensor([[2, *target[:-1].tolist()]])
        with torch.no_grad():
            logits = run.model(torch.tensor(source)[None].long(), torch.tensor([len(source)]), given)[0]
        total -= float(logits.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target).long()].sum())
        tokens += len(target)
    assert report["dev_loss"] == pytest.approx(total / tokens, rel=1e-5 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"momentum": 0.9}, "Extra inputs"),
        ({"model": {"depth": 3}}, "Extra inputs"),
        ({"steps": 0}, "greater than 0"),
        ({"weights": {"web": -1}}, "greater than or equal to 0"),
        ({"decay": 1.5}, "less than or equal to 1"),
        ({"optimizer": "sgd"}, "'adamw' or 'muon'"),
        ({"pairs": [["en", "fr"]]}, "its reverse or both"),
        ({"pairs": [["en", "de"], ["en", "de"]]}, "each once"),
        ({"pairs": []}, "at least 1 item"),
        ({"languages": ["en"]}, "Field required"),
        ({"languages": ["en", "fr"]}, "languages names fr; there are en, de"),
        ({"placeholders": ["% d"]}, "should match pattern"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        TrainSettings.model_validate(values)


def test_the_first_direction_is_learnt_unless_others_are_named() -> None:
    assert TrainSettings().pairs == (("en", "de"),)
    assert TrainSettings(languages=("de", "en")).pairs == (("de", "en"),)
    assert TrainSettings(pairs=(("de", "en"),)).pairs == (("de", "en"),)


@pytest.mark.parametrize(
    "recipe", sorted(checkpoint.PRETRAINED.glob("*/recipe*.json")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_recipes_are_valid(recipe: Path) -> None:
    TrainSettings.model_validate_json(recipe.read_bytes())


@pytest.mark.parametrize("name", checkpoint.shipped())
def test_settings_of_poolings_are_valid(name: str) -> None:
    PoolingSettings.model_validate_json((checkpoint.locate(name) / "pooling.json").read_bytes())


def test_the_recipe_of_the_small_checkpoint_fits_it() -> None:
    settings = TrainSettings.model_validate_json((checkpoint.locate(SMALL) / "recipe.json").read_bytes())
    small = checkpoint.load(checkpoint.locate(SMALL)).config
    assert (settings.name, settings.pairs, settings.model) == (small.name, small.pairs, small.model)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.01),  # one of ten steps of warm-up
        (4, 0.05),
        (9, 0.1),  # the peak
        (39, 0.05),  # four times as late, half the rate
        (79, 0.1 * (10 / 80) ** 0.5),
        (80, 0.1 * (10 / 81) ** 0.5),  # the decay begins: all 20 steps left
        (90, 0.1 * (10 / 91) ** 0.5 * 0.5),
        (99, 0.1 * (10 / 100) ** 0.5 * 0.05),
    ],
)
def test_rate_warms_up_falls_with_the_root_and_decays(step: int, rate: float) -> None:
    settings = TrainSettings(learning_rate=0.1, warmup=10, steps=100, decay=0.2)
    assert settings.rate(step) == pytest.approx(rate, rel=1e-12)


def test_rate_never_falls_under_a_fiftieth_and_may_not_decay() -> None:
    settings = TrainSettings(learning_rate=0.1, warmup=1000, steps=1000, decay=1.0)
    assert settings.rate(999) == pytest.approx(0.1 / 50)
    assert TrainSettings(learning_rate=0.1, warmup=10, steps=40, decay=0.0).rate(39) == pytest.approx(0.05)


def test_average_is_the_mean_in_full_precision(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [{"a": torch.randn(3, 4, generator=generator).half(), "b": torch.full((2,), n)} for n in (1.0, 2.0, 6.0)]
    files = [tmp_path / f"{number}" for number in range(3)]
    for file, each in zip(files, weights, strict=True):
        save_file(each, file)
    mean = average(files)
    assert torch.equal(mean["b"], torch.full((2,), 3.0))
    expected = sum(each["a"].double() for each in weights) / 3
    torch.testing.assert_close(mean["a"].double(), expected, atol=1e-6, rtol=1e-6)


def test_other_settings_do_not_spoil_a_run(start: Start) -> None:
    start("run", steps=5).train()
    for changes in ({"tokens": 500}, {"seed": 2}, {"model": MODEL.model_copy(update={"width": 32})}):
        with pytest.raises(ValueError, match=f"holds a run with {next(iter(changes))} .*; start in another folder"):
            start("run", **changes)
    assert start("run", steps=7, evaluate_every=3).step == 5


def test_a_tokenizer_of_another_size_is_refused(start: Start, through: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / checkpoint.TOKENIZER).write_bytes(through.tokenizer.serialized)
    with pytest.raises(ValueError, match="has 400 pieces, the settings ask for 401"):
        start("run", model=MODEL.model_copy(update={"vocabulary": 401}))
