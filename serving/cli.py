"""The command ``dragoman``: thin verbs that import what they need when they are called."""

import asyncio
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from serving.settings import PREFIX, SHIPPED, Settings

if TYPE_CHECKING:
    from model.evaluate import Score
    from serving.options import TranslateOptions
    from serving.pipeline import Pipeline

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
errors = Console(stderr=True, highlight=False)


def fail(message: str) -> NoReturn:
    """One clear message on standard error, and exit status 1."""
    errors.print(message, markup=False, soft_wrap=True)
    raise typer.Exit(1)


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command``, whose first parameter is `Settings`, an option for every setting."""
    own = list(inspect.signature(command).parameters.values())[1:]
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                (field.annotation if field.annotation in (int, float, str, Path) else str) | None,
                typer.Option(
                    help=f"{field.description} [{'; '.join([PREFIX + name.upper(), *_default(field)])}]",
                    show_default=False,
                ),
            ],
        )
        for name, field in Settings.model_fields.items()
    ]

    def wrapped(**given: Any) -> None:
        names = set(Settings.model_fields)
        try:
            settings = Settings(**{name: given[name] for name in names if given[name] is not None})
        except ValidationError as error:
            _refuse_settings(error)
        command(settings, **{name: value for name, value in given.items() if name not in names})

    wrapped.__doc__, wrapped.__name__ = command.__doc__, command.__name__
    wrapped.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
    return wrapped


def _default(field: Any) -> list[str]:
    """The default to be told, unless it is in the description."""
    if field.default is SHIPPED:
        return ["the one that ships"]
    return [] if field.default_factory else [str(field.default)]


def _refuse_settings(error: ValidationError) -> NoReturn:
    # A default that is made of a setting cannot be made of one that is refused: that is no fault of its own.
    faults = [fault for fault in error.errors() if fault["type"] != "default_factory_not_called"]
    fail("\n".join(map(_setting_fault, faults)))


def _setting_fault(fault: Any) -> str:
    place = ".".join(map(str, fault["loc"]))
    return f"setting {place}: {fault['msg']}, not {fault['input']!r}" if place else fault["msg"]


BeamSize = Annotated[int, typer.Option(help="Hypotheses followed at one time; 1 is greedy search.")]
LengthPenalty = Annotated[float, typer.Option(help="Rank by score / tokens ** this: the larger, the longer.")]


def _options(**given: Any) -> "TranslateOptions":
    """Those of ``given`` that are not None as `TranslateOptions`."""
    from serving.options import TranslateOptions

    try:
        return TranslateOptions.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        fail("\n".join(_option_fault(fault) for fault in error.errors()))


def _option_fault(fault: Any) -> str:
    return f"--{str(fault['loc'][-1]).replace('_', '-')}: {fault['msg']}, not {fault['input']!r}"


@app.command()
@with_settings
def serve(settings: Settings) -> None:
    """Start the service and answer until it is told to stop."""
    from export.bundle import BundleError, Manifest
    from serving.deployment import StartError, run

    url = f"http://{settings.host}:{settings.port}"
    example = """-d '{"text": "The file could not be opened."}'"""

    def starting(manifest: Manifest) -> None:
        fewest, most = settings.replicas, settings.max_replicas
        replicas = f"{fewest} to {most} replicas" if most > fewest else _count(fewest, "replica")
        cores = _count(settings.cpus, "core")
        print(f"starting {manifest.name} ({manifest.precision}): {replicas} of {cores}", flush=True)

    def ready() -> None:
        print(f"ready on {url}; try\n\n  curl {url}/v1/translate {example}\n", flush=True)

    try:
        run(settings, starting, ready)
    except (BundleError, StartError) as error:
        fail(str(error))
    print("stopped", flush=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _lines() -> list[str]:
    """Standard input as lines; a byte that is not UTF-8 is refused with its line's number."""
    lines: list[str] = []
    given = sys.stdin.buffer.read()
    for number, line in enumerate(given.removesuffix(b"\n").split(b"\n") if given else [], 1):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError as error:
            fail(f"line {number} is not UTF-8: {error.reason} at byte {error.start + 1}")
    return lines


def _each_line(
    settings: Settings,
    source: str | None,
    target: str | None,
    work: Callable[["Pipeline", tuple[str, str], str, int], Any],
    blank: str,
    options: "TranslateOptions | None" = None,
) -> None:
    """Print the result of ``work`` for each line of standard input, in order; say which failed and leave them blank.

    ``work`` is given each line with its number, from 0 on; ``options``, which it may use, are checked beforehand.
    """
    from rich.progress import Progress

    from export.bundle import BundleError
    from serving.errors import ServiceError
    from serving.pipeline import Pipeline

    lines = _lines()
    try:
        pipeline = Pipeline.offline(settings)
        pair = pipeline.pair(source, target)
        if options:
            pipeline.check(options)
    except (BundleError, ServiceError) as error:
        fail(str(error))
    failed = 0

    async def run() -> None:
        nonlocal failed
        window = asyncio.Semaphore(4 * settings.rows)

        async def one(number: int, line: str) -> str:
            async with window:
                return str(await work(pipeline, pair, line, number)) if line.strip() else blank

        with Progress(console=errors, transient=True, disable=len(lines) < 100 or not errors.is_terminal) as progress:
            tasks = [asyncio.create_task(one(number, line)) for number, line in enumerate(lines)]
            for number, task in enumerate(progress.track(tasks, description="lines"), 1):
                try:
                    print(await task)
                except ServiceError as error:
                    failed += 1
                    print(blank)
                    errors.print(f"line {number}: {error.detail}", markup=False, soft_wrap=True)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        fail("stopped")
    finally:
        pipeline.close()
    if failed:
        fail(f"{failed} of {len(lines)} lines failed")


@app.command()
@with_settings
def translate(
    settings: Settings,
    source: Annotated[str | None, typer.Option(help="Language of the input; the model's first unless given.")] = None,
    target: Annotated[str | None, typer.Option(help="Language to write; the first there is unless given.")] = None,
    beam_size: BeamSize = 1,
    length_penalty: LengthPenalty = 1.0,
    min_tokens: Annotated[int, typer.Option(help="The fewest tokens of a sentence.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(help="The most; twice the source's and ten unless given.")] = None,
    no_repeat_ngram: Annotated[int, typer.Option(help="Repeat no so many tokens in a row in a sentence.")] = 0,
    temperature: Annotated[float | None, typer.Option(help="Draw the translation: above 1 more boldly.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many of the likeliest tokens; 50.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of these, from those whose probabilities reach it; 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draw the same again; each line adds its number, from 0 on.")] = None,
) -> None:
    """Translate standard input line by line, without a server."""
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    drawn = {name: value for name, value in drawing.items() if value is not None}
    if drawn and temperature is None:
        fail(f"--{next(iter(drawn)).replace('_', '-')} is for drawing translations: give --temperature too")
    options = _options(
        beam_size=beam_size,
        length_penalty=length_penalty,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        no_repeat_ngram=no_repeat_ngram,
        sampling=drawn or None,
    )
    if options.sampling and seed is None:
        errors.print(f"drawing with --seed {options.sampling.seed}")

    async def work(pipeline: "Pipeline", pair: tuple[str, str], line: str, number: int) -> str:
        [found], _ = await pipeline.translate([line], *pair, options.reseeded(number))
        if found.finish_reason == "length":
            errors.print(f"ran into its limit and may be cut short: {line}", markup=False, soft_wrap=True)
        return " ".join(found.text.splitlines())

    _each_line(settings, source, target, work, "", options)


@app.command()
@with_settings
def encode(
    settings: Settings,
    source: Annotated[str | None, typer.Option(help="Language of the input; the model's first unless given.")] = None,
) -> None:
    """Encode standard input line by line: a JSON list each, the mean over its tokens scaled to length 1."""

    async def work(pipeline: "Pipeline", pair: tuple[str, str], line: str, number: int) -> str:
        _, [vectors], _ = await pipeline.encode([line], *pair, pooled=True)
        return json.dumps(vectors[0].tolist())

    _each_line(settings, source, None, work, blank="null")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint (a bundle with --list or --subgraph).")],
    bundle: Annotated[Path | None, typer.Argument(help="Folder to write (a file with --subgraph).")] = None,
    precision: Annotated[str, typer.Option(help="fp32 or int8.")] = "int8",
    attention: Annotated[str, typer.Option(help="Bodies of the attention functions: standard or fused.")] = "fused",
    list_: Annotated[bool, typer.Option("--list", help="List a bundle's attention nodes with their shapes.")] = False,
    subgraph: Annotated[str | None, typer.Option(help="Cut one attention node out, such as decoder.1.cross.")] = None,
    graph: Annotated[str | None, typer.Option(help="Cut from encoder, decoder or attention.")] = None,
) -> None:
    """Export a checkpoint to a bundle; list a bundle's attention; cut one attention out as a model of its own."""
    if list_:
        return _list_attention(checkpoint)
    if bundle is None:
        fail("name the folder to write" if subgraph is None else "name the file to write")
    if subgraph is not None:
        return _cut_out(checkpoint, subgraph, graph, bundle)
    for name, value, known in (
        ("precision", precision, ("fp32", "int8")),
        ("attention", attention, ("standard", "fused")),
    ):
        if value not in known:
            fail(f"--{name} is {value!r}; it takes {' or '.join(known)}")
    _require("torch", "export")
    from export.exporter import ParityError
    from export.exporter import export as run
    from model.checkpoint import CheckpointError

    try:
        with errors.status(f"exporting {checkpoint} in {precision} and comparing it with PyTorch"):
            manifest = run(checkpoint, bundle, precision, attention)  # type: ignore[arg-type]
    except (CheckpointError, ParityError, OSError) as error:
        fail(str(error))
    report = manifest.parity
    assert report is not None
    table = Table("rows", "source tokens", "steps", "tokens equal", "log-probability", "memory", "attention weights")
    for case in report.cases:
        table.add_row(
            str(case.rows),
            f"{case.lengths[0]} to {case.lengths[1]}",
            str(case.steps),
            f"{case.tokens_equal} of {case.tokens}",
            *(f"{error:.1e}" for error in (case.log_probability_error, case.memory_error, case.attention_error)),
        )
    console = Console()
    console.print(f"ONNX Runtime against {report.reference}: largest differences", table)
    console.print(f"at half of the tokens no log-probability differs by more than {report.typical_error:.1e}")
    size = sum(file.bytes for file in manifest.files.values()) / 1e6
    console.print(f"{bundle}: {manifest.name}, {precision}, {attention} attention, {size:.1f} MB")


def _list_attention(bundle: Path) -> None:
    from export.bundle import BundleError, read_manifest

    _require("onnx", "export")
    from export.subgraph import attention_nodes

    try:
        read_manifest(bundle)
    except BundleError as error:
        fail(str(error))
    for node in attention_nodes(bundle):
        takes, gives = (
            ", ".join(f"{name} {shape}" for name, shape in values.items()) for values in (node.inputs, node.outputs)
        )
        print(f"{node.graph}  {node.name}  {node.function}, layer {node.layer}, {node.heads} heads")
        print(f"    {takes}\n    -> {gives}")


def _cut_out(bundle: Path, name: str, graph: str | None, path: Path) -> None:
    _require("onnx", "export")
    import onnx

    from export.bundle import GRAPHS, BundleError, read_manifest
    from export.subgraph import attention_nodes, cut_out

    if graph is not None and graph not in GRAPHS:
        fail(f"--graph is {graph!r}; it takes {', '.join(GRAPHS)}")
    try:
        read_manifest(bundle)
        onnx.save(cut_out(bundle, name, graph), path)
    except (BundleError, OSError) as error:
        fail(str(error))
    except KeyError:
        known = sorted({node.name for node in attention_nodes(bundle) if graph in (None, node.graph)})
        fail(f"there is no attention called {name!r}; there are {', '.join(known)}")
    print(path)


@app.command()
def train(
    folder: Annotated[Path, typer.Argument(help="Folder of the run; an interrupted run goes on from there.")],
    data: Annotated[
        list[Path],
        typer.Option(help="Training pairs: source, target and origin, tab-separated, .gz or not; may be given again."),
    ],
    dev: Annotated[Path, typer.Option(help="Pairs to evaluate on the way.")],
    recipe: Annotated[Path | None, typer.Option(help="JSON of the settings; see model/train.py.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="One setting, such as steps=2000; dots nest.")] = None,
) -> None:
    """Train a model; the checkpoint so far is always in FOLDER/checkpoint."""
    _require("torch", "train")
    from model.train import Run, TrainSettings

    chosen = _recipe(recipe) if recipe else {}
    for setting in set_ or []:
        _put(chosen, setting)
    try:
        settings = TrainSettings.model_validate(chosen)
    except ValidationError as error:
        _refuse_settings(error)
    for path in (*data, dev):
        if not path.is_file():
            fail(f"{path} is not a file")
    # Whoever ends the process wants what an interrupt does: save. In the background, shells have SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        print(Run(folder, settings, data, dev, errors).train())
    except (OSError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _recipe(path: Path) -> dict[str, Any]:
    try:
        chosen = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        fail(f"{path}: {error}")
    if not isinstance(chosen, dict):
        fail(f"{path}: a recipe is a JSON object of settings")
    return chosen


def _put(settings: dict[str, Any], assignment: str) -> None:
    """Apply ``name=value``, ``name.inner=value``; values are JSON, else text."""
    name, equals, value = assignment.partition("=")
    if not equals:
        fail(f"--set {assignment}: give it a name and a value, such as steps=2000")
    *outer, last = name.split(".")
    for part in outer:
        settings = settings.setdefault(part, {})
        if not isinstance(settings, dict):
            fail(f"--set {assignment}: {part} has no settings of its own")
    try:
        settings[last] = json.loads(value)
    except json.JSONDecodeError:
        settings[last] = value


corpus = typer.Typer(no_args_is_help=True, help="Gather text to train on.")
app.add_typer(corpus, name="corpus")


@corpus.command()
def debian(
    output: Annotated[Path, typer.Argument(help="File to write: English, German and origin, tab-separated; .tsv.gz.")],
    held_out: Annotated[
        list[Path] | None, typer.Option(help="Pairs to evaluate on, which nothing may resemble; may be given again.")
    ] = None,
    origin: Annotated[list[str] | None, typer.Option(help="Only this part; may be given again.")] = None,
    raw: Annotated[bool, typer.Option(help="Keep what teaches nothing: repeats, text that is not translated.")] = False,
) -> None:
    """Gather English and German text from Debian's packages: ten minutes; needs apt and 3 GB for a while."""
    _require("polib", "train")
    from model.cleaning import clean
    from model.debian.apt import DebianError
    from model.debian.gathering import gather
    from model.debian.sources import SOURCES
    from model.held_out import without
    from model.pairs import read_pairs, write_pairs

    if unknown := set(origin or ()) - SOURCES.keys():
        fail(f"no such origin: {', '.join(sorted(unknown))}; there are {', '.join(SOURCES)}")
    try:
        held = [pair for path in held_out or () for pair in read_pairs(path)]
        output.parent.mkdir(parents=True, exist_ok=True)
        # What cannot be written is said before the work.
        if output.is_dir() or not os.access(output.parent, os.W_OK):
            fail(f"{output} cannot be written: name a file in a folder that may be written to")
        missing: list[str] = []
        gathered = gather(origin or SOURCES, errors, missing)
        pairs, left_out = (list(gathered), {}) if raw else clean(gathered)
        kept = without(pairs, held)
        # A file that has everything must not be lost for one that has not.
        written = output.with_name(f"incomplete-{output.name}") if missing and output.exists() else output
        write_pairs(written, kept)
    except (OSError, ValueError, DebianError) as error:
        fail(str(error))
    counts = {**left_out, "held_out": len(pairs) - len(kept)}
    print(json.dumps({"written": str(written), "pairs": len(kept), **counts, "missing": missing}))
    if written != output:
        fail(f"{output} stays as it was: what was gathered lacks {', '.join(missing)}, and is in {written}")


@corpus.command()
def split(
    text: Annotated[Path, typer.Argument(help="Pairs with origins, tab-separated, .gz or not.")],
    folder: Annotated[Path, typer.Argument(help="Folder for train.tsv.gz, dev.tsv.gz and test.tsv.gz.")],
    pairs: Annotated[int, typer.Option(min=1, help="How many for dev, and for test, evenly from the origins.")] = 2000,
    origin: Annotated[list[str] | None, typer.Option(help="Draw from this one only; may be given again.")] = None,
    seed: Annotated[int, typer.Option(help="Draw the same again.")] = 0,
) -> None:
    """Keep pairs to evaluate on apart from those to learn from, which are left without what is like them."""
    from model import held_out
    from model.pairs import read_pairs, write_pairs

    try:
        parts = held_out.split(read_pairs(text), pairs, origin or (), seed)
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in parts._asdict().items():
            write_pairs(folder / f"{name}.tsv.gz", part)
    except (OSError, ValueError) as error:
        fail(str(error))
    print(json.dumps({"written": str(folder), **{name: len(part) for name, part in parts._asdict().items()}}))


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A checkpoint (PyTorch) or a bundle (ONNX Runtime).")],
    data: Annotated[Path, typer.Option(help="Pairs with origins, tab-separated, .gz or not.")],
    languages: Annotated[str, typer.Option(help="What its first two columns hold.")] = "en-de",
    pair: Annotated[list[str] | None, typer.Option(help="A direction such as de-en; all the model knows.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pairs.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the translations: en-de.txt, a line each.")] = None,
    placeholder: Annotated[
        list[str] | None, typer.Option(help="Put it, such as %s, in place of numbers and names first; again for more.")
    ] = None,
    beam_size: BeamSize = 1,
    length_penalty: LengthPenalty = 1.0,
) -> None:
    """BLEU and chrF per origin, per length and in total, in each direction."""
    _require("sacrebleu", "train")
    from model.evaluate import confidence, score
    from model.pairs import directed, read_pairs
    from model.placeholders import survival, with_placeholders
    from serving.evaluate import evaluated

    options = _options(beam_size=beam_size, length_penalty=length_penalty)
    try:
        pairs = read_pairs(data)[:limit]
        if placeholder:
            if not all(map(str.strip, placeholder)):
                fail("--placeholder is blank: give it one such as %s")
            pairs = with_placeholders(pairs, placeholder, seed=0)
        if not pairs:
            fail(f"{data}: no pairs to translate" + (" that have a number or a name" if placeholder else ""))
        if output:
            output.mkdir(parents=True, exist_ok=True)
        with evaluated(model, errors, options) as (learnt, translate):
            for direction in _directions(learnt, languages, pair):
                there = "-".join(direction)
                ordered = directed(pairs, tuple(languages.split("-")), direction)
                sources = [each.source for each in ordered]
                written, scores = translate(sources, direction)
                extra = {} if scores is None else {"confidence": confidence(ordered, written, scores)}
                if placeholder:
                    extra["placeholders_kept"] = round(survival(sources, written, placeholder), 4)
                rows = score(ordered, written)
                _print_scores(there, rows)
                total = rows[-1]
                figures = {"pairs": total.pairs, "bleu": total.bleu, "chrf": total.chrf, "degenerate": total.degenerate}
                print(json.dumps({"model": str(model), "direction": there, **figures, **extra}))
                if output:
                    lines = "".join(" ".join(text.splitlines()) + "\n" for text in written)
                    (output / f"{there}.txt").write_text(lines, encoding="utf-8")
    except (OSError, ValueError) as error:
        fail(str(error))


def _print_scores(title: str, rows: "Sequence[Score]") -> None:
    table = Table("part", "pairs", "BLEU", "chrF", "degenerate", title=title, title_justify="left")
    for row in rows:
        table.add_row(row.part, str(row.pairs), f"{row.bleu:.2f}", f"{row.chrf:.2f}", f"{row.degenerate:.1%}")
    Console().print(table)


def _directions(
    learnt: Sequence[tuple[str, str]], languages: str, wanted: Sequence[str] | None
) -> list[tuple[str, str]]:
    """Those of ``learnt`` that text in ``languages`` has both sides of, and that are ``wanted`` unless all are."""
    possible = [each for each in learnt if sorted(each) == sorted(languages.split("-"))]
    unknown = set(wanted or ()) - {"-".join(each) for each in possible}
    if unknown or not possible:
        known = ", ".join("-".join(each) for each in learnt)
        raise ValueError(f"the model knows {known}; not {', '.join(sorted(unknown)) or languages}")
    return [each for each in possible if not wanted or "-".join(each) in wanted]


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def loadtest(context: typer.Context) -> None:
    """Load a service with Locust and measure it; see dragoman loadtest --help."""
    _require("locust", "loadtest")
    if "--compare" in context.args:
        _require("torch", "compare")
        _require("ctranslate2", "compare")
    from loadtest.run import main

    raise typer.Exit(main(context.args))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def bench(context: typer.Context) -> None:
    """Measure this engine against CTranslate2 and PyTorch on this machine; see dragoman bench --help."""
    _require("torch", "bench")
    _require("onnx", "bench")
    from serving.bench.run import main

    raise typer.Exit(main(context.args))


def _require(module: str, extra: str) -> None:
    """Fail with the way out when an optional package is missing."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        fail(f"{module} is not installed: run make test, or in a clone: pip install --editable '.[{extra}]'")


if __name__ == "__main__":
    app()
