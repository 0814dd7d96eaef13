"""The benchmark as a command: the same weights and sentences through several engines in turn, on one machine."""

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from export.bundle import DEFAULT
from model.checkpoint import CheckpointError, locate, shipped
from serving.bench import report
from serving.bench.contestants import ENTRANTS, Entrant
from serving.bench.machine import Machine, describe
from serving.bench.rounds import CUDA_BATCHES, Cell, Plan, Result, Skipped, measure
from serving.bench.subjects import FIXED_TOKENS, PAPER, prepare
from serving.runtime.devices import check_gpus

console = Console(stderr=True, highlight=False)
LEAST_SENTENCES = 32
"""Sentences a measurement takes of a trained model, however few the rows: one alone says little."""
SENTENCES = Path(__file__).parents[2] / "loadtest" / "sentences.txt"
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "ctranslate2", "torch")
BEAMS = {"greedy": 1, "beam": 4}
FULL = {"models": f"{DEFAULT},{PAPER}", "rows": "1,8,32,64", "threads": "1,2", "search": "greedy,beam", "repeats": "3"}
CUDA = {"models": f"{DEFAULT},{PAPER}", "rows": "1,32,256", "threads": "1", "search": "greedy,beam", "repeats": "3"}
QUICK = {"models": "en-de-small", "rows": "1,4", "threads": "1", "search": "greedy", "repeats": "1"}
EPILOG = f"""\
Tokens a second are the target tokens an engine wrote, end tokens included, by the time it took. Latency is the time
from handing over a batch of so many rows until its last sentence is done. Engines take turns, round after round;
figures are medians over the rounds, ratios medians of each round's ratio. A trained model translates lines of --data,
the same ones whatever the number of rows; "{PAPER}" is the paper's shape with random weights and a vocabulary of
32,000, {FIXED_TOKENS} tokens in and exactly {FIXED_TOKENS} out. With several threads CTranslate2 is measured twice, all
of them on one batch and the batch cut in as many parts, and reported with the better. PyTorch is the model of model/ in
a loop of the benchmark's own, which keeps keys and values and leaves out who is done; on a GPU it is compiled and its
steps are CUDA graphs. The peer is CTranslate2 in int8, on a GPU the faster of CTranslate2 and PyTorch in fp16. On a GPU
every batch is translated once before it is timed, {CUDA_BATCHES} batches at most are measured, and threads are the
host's. An engine that fails is left out, with the reason. Whatever else the machine does meanwhile is measured too.
"""

T = TypeVar("T")


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; returns the exit status. What ends it early leaves what was measured."""
    options = _parse(arguments)
    results: list[Result] = []
    skipped: list[Skipped] = []
    status = 0
    try:
        if options.device == "cuda" and any(entrant.engine == "dragoman" for entrant in options.engines):
            check_gpus(1)
        options.output.mkdir(parents=True, exist_ok=True)  # what cannot be written is better known before than after
        with console.status("measuring how fast this machine multiplies matrices"):
            machine = describe(options.threads, PACKAGES, options.device)
        report.say(console, machine)
        _measure(options, machine, results, skipped)
    except KeyboardInterrupt:
        console.print("stopped")
        status = 130
    except (CheckpointError, OSError, ValueError) as error:
        console.print(str(error), markup=False, soft_wrap=True)
        status = 2
    if skipped and not results:
        status = status or 2
        for reason in dict.fromkeys(each.reason for each in skipped):
            console.print(reason, markup=False, soft_wrap=True)
    if results:
        report.show(console, results, skipped)
        report.write(options.output, machine, results, skipped)
        console.print(f"written: {options.output / report.JSON}, {options.output / report.PLOT}", markup=False)
        print(json.dumps(report.document(machine, results, skipped)))
    return status


def _measure(options: argparse.Namespace, machine: Machine, results: list[Result], skipped: list[Skipped]) -> None:
    """Measure everything that ``options`` ask for into ``results`` and ``skipped``."""
    beams = [BEAMS[search] for search in options.search]
    plan = Plan(options.device, options.engines, beams, options.rows, options.threads, options.repeats)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    # Redrawn between measurements only: a thread that draws would be measured with them.
    with (
        tempfile.TemporaryDirectory(prefix="dragoman-bench-") as folder,
        Progress(*columns, console=console, transient=True, auto_refresh=False) as progress,
    ):
        sentences = max(0 if options.quick else LEAST_SENTENCES, *options.rows)
        task = progress.add_task("", total=len(options.models) * plan.cells)

        def tell(cell: Cell, doing: str) -> None:
            progress.update(task, description=f"{cell}; {doing}", advance=0 if doing else 1, refresh=True)

        for number, name in enumerate(options.models):
            progress.update(task, description=f"{name}: preparing", refresh=True)
            where = Path(folder) / str(number)
            subject = prepare(name, where, options.engines, options.data, sentences, options.device)
            for found in measure(subject, plan, machine, tell):
                if isinstance(found, Result):
                    results.append(found)
                else:
                    skipped.append(found)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "dragoman bench",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, read, said in (
        ("models", _models, f"{', '.join([*shipped(), PAPER])} or a checkpoint's folder"),
        ("rows", _list(whole_number), "sentences in a batch"),
        ("threads", _list(whole_number), "threads an engine computes with"),
        ("search", _list(_search), "greedy, or a beam of 4"),
        ("repeats", whole_number, "rounds in which every engine is measured once"),
    ):
        also = "" if FULL[name] == CUDA[name] else f"; on a GPU {CUDA[name]}"
        parser.add_argument(f"--{name}", type=read, metavar="…", help=f"{said} ({FULL[name]}{also})")
    parser.add_argument("--device", choices=tuple(ENTRANTS), default="cpu", help="what engines compute on (cpu)")
    everybody = ",".join(dict.fromkeys(entrant.engine for entrant in ENTRANTS["cpu"]))
    parser.add_argument("--engines", metavar="…", help=f"such as dragoman:int8 ({everybody})")
    parser.add_argument("--data", type=Path, default=SENTENCES, help="sentences: the first column; the project's own")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder for JSON and plot (runs/bench)")
    parser.add_argument("--quick", action="store_true", help=f"a glance: {' '.join(_flags(QUICK))} unless given")
    asked = parser.parse_args(arguments)
    chosen = parser.parse_args(
        [*_flags(QUICK if asked.quick else CUDA if asked.device == "cuda" else FULL), *arguments]
    )
    try:
        chosen.engines = _engines(chosen.engines or everybody, chosen.device)
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --engines: {error}")
    _check_installed(parser, chosen)
    return chosen


def _flags(values: dict[str, str]) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", value)]


def _list(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A reader of comma-separated values, each once."""
    return lambda text: list(dict.fromkeys(read(part) for part in text.split(",")))


def whole_number(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _search(text: str) -> str:
    if text not in BEAMS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither {' nor '.join(BEAMS)}")
    return text


def _models(text: str) -> list[str]:
    for name in (names := list(dict.fromkeys(text.split(",")))):
        if name != PAPER and not locate(name).is_dir():
            known = ", ".join([*shipped(), PAPER])
            raise argparse.ArgumentTypeError(f"{name!r} is none of {known}, and no checkpoint's folder")
    return names


def _engines(text: str, device: str) -> list[Entrant]:
    entrants, chosen = ENTRANTS[device], set()
    for name in text.split(","):
        found = {entrant for entrant in entrants if name in (entrant.engine, f"{entrant.engine}:{entrant.precision}")}
        if not found:
            known = ", ".join(f"{entrant.engine}:{entrant.precision}" for entrant in entrants)
            raise argparse.ArgumentTypeError(f"{name!r} is none of {known}")
        chosen |= found
    return [entrant for entrant in entrants if entrant in chosen]


def _check_installed(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    # A machine with a GPU has another peer, may have no network, and is told of what is missing as a failed engine.
    asked = chosen.device == "cpu" and any(entrant.engine == "ctranslate2" for entrant in chosen.engines)
    if asked and importlib.util.find_spec("ctranslate2") is None:
        parser.error("ctranslate2 is not installed: run make bench, or leave it out with --engines dragoman,pytorch")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
