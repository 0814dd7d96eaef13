"""Everything that only a card can prove, within ten minutes: see run.sh.

It writes OUT/results.jsonl, a line a stage as it comes, OUT/log.txt and OUT/table.md, each anew. It ends in one line of
JSON and a table. What stages need of room lies in a temporary folder.
"""

import argparse
import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from tests.gpu import figures
from tests.gpu.exports import BUNDLES
from tests.gpu.report import Outcome, Stage, note, run_all, summary, table

ROOT = Path(__file__).resolve().parents[2]
SERVED = "fp16-fused"
REFERENCE = "fp32-standard"
GRAPHS = "--cuda-graphs"
EXPORT = "export"
"""The stage that writes the bundles that the others read."""
PEER_LIBRARIES = {"libcublas.so.12": "libcublas.so.13", "libcublasLt.so.12": "libcublasLt.so.13"}
"""What CTranslate2 opens by name, and what a machine with CUDA 13 has in its place."""


def peer_libraries(work: Path) -> dict[str, str]:
    """The environment in which CTranslate2 finds cuBLAS, though it asks for that of CUDA 12."""
    links = work / "libraries"
    links.mkdir(parents=True, exist_ok=True)
    for wanted, there in PEER_LIBRARIES.items():
        found = [path for folder in sys.path for path in Path(folder or ".").glob(f"nvidia/*/lib/{there}")]
        if found and not (links / wanted).exists():
            (links / wanted).symlink_to(found[0].resolve())
        if found and not (links / there).exists():
            (links / there).symlink_to(found[0].resolve())
    paths = [str(links), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {"LD_LIBRARY_PATH": os.pathsep.join(paths)}


def stages(options: argparse.Namespace, work: Path) -> Iterator[Stage]:
    """All checks, those first that others need or that matter most."""
    device, quick, bundles = options.device, options.quick, options.bundles

    def module(name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", name, *arguments]

    def bundle(name: str) -> str:
        return str(bundles / name)

    # Where there is no card, only the fake device has a memory of its own to plant faults in.
    faulty = "fake" if device == "cpu" else device
    few = ("--count", "12") if quick else ()
    yield Stage("environment", module("tests.gpu.environment", "--device", device), 60)
    yield Stage(EXPORT, module("tests.gpu.exports", options.checkpoint, str(bundles)), 240)
    for name in BUNDLES:
        yield Stage(f"placement {name}", module("tests.gpu.placement", bundle(name), "--device", device), 60)
        yield Stage(f"verify {name}", module("serving.cli", "verify", bundle(name), "--device", device), 60)

    def sentences(name: str) -> Stage:
        alone = ("--alone", "4" if quick else "500" if name == SERVED else "100")
        against = ("--reference", bundle(REFERENCE), "--device", device, *alone, *few)
        return Stage(f"sentences {name}", module("tests.gpu.sentences", bundle(name), *against), 120)

    def faults(name: str) -> Stage:
        return Stage(f"faults {name}", module("tests.gpu.faults", bundle(name), "--device", faulty), 150)

    yield sentences(SERVED)
    yield faults(SERVED)
    rows = "1,4" if quick else "1,32,128,256,512"
    steps = module("serving.bench.steps", bundle(SERVED), "--device", device, "--rows", rows)
    yield Stage("steps", steps, 60)

    def bench(name: str, *arguments: str) -> list[str]:
        return module("serving.cli", "bench", "--device", device, "--output", str(work / name), *arguments)

    model = ("--models", options.checkpoint)
    alike = ("--quick",) if quick else (*model, "--rows", "256", "--search", "greedy")
    yield Stage("bench", bench("bench", *alike), 240, peer_libraries(work))
    if device == "cuda":
        # Whether recording a step pays is seen from the same figures with it.
        yield Stage("verify recorded", module("serving.cli", "verify", bundle(SERVED), "--device", device, GRAPHS), 60)
        yield Stage("steps recorded", [*steps, GRAPHS], 60)
        recorded = bench("recorded", *alike, "--engines", "dragoman:fp16")
        yield Stage("bench recorded", recorded, 90, {"DRAGOMAN_CUDA_GRAPHS": "true"})
    requests = ("--requests", "400" if quick else "10000")
    yield Stage("memory", module("tests.gpu.memory", bundle(SERVED), "--device", device, *requests), 120)
    users, seconds = ("4", "5") if quick else ("64", "60")
    load = module("serving.cli", "loadtest", "--no-ray", "--bundle", bundle(SERVED), "--users", users)
    card = [] if device == "cpu" else ["--gpus", "1"]
    yield Stage("load test", [*load, "--seconds", seconds, *card, "--report", str(work / "load.html")], 150)
    # What is not served by default comes last: where time is short, it is left out.
    if not quick:
        yield Stage("bench of fewer rows", bench("fewer", *model, "--rows", "1,32"), 180, peer_libraries(work))
    yield from (sentences(name) for name in BUNDLES if name != SERVED)
    yield faults("fp16-standard")


def refuse(reason: str) -> NoReturn:
    """End with ``reason`` in one line, and status 2."""
    print(reason, file=sys.stderr)
    raise SystemExit(2)


def choose(options: argparse.Namespace, work: Path) -> list[Stage]:
    """The stages that ``options`` ask for; SystemExit where ``--only`` names none, or one whose bundles are missing."""
    every = list(stages(options, work))
    if options.only is None:
        return every
    words = tuple(filter(None, map(str.strip, options.only.split(","))))
    unknown = [word for word in words if not any(stage.name.startswith(word) for stage in every)]
    if unknown or not words:
        fault = f"no stage begins with {', '.join(unknown)}" if unknown else "--only names no stage"
        refuse(f"{fault}; the stages are: {', '.join(stage.name for stage in every)}")
    chosen = [stage for stage in every if stage.name.startswith(words)]
    read = {name for name in BUNDLES for stage in chosen if str(options.bundles / name) in stage.command}
    missing = [name for name in BUNDLES if name in read and not (options.bundles / name / "manifest.json").exists()]
    if missing and not any(stage.name == EXPORT for stage in chosen):
        refuse(f"there is no bundle {', '.join(missing)}: run the stage {EXPORT} first, or name --bundles")
    return chosen


def make_ready(out: Path) -> None:
    """Make the folder ``out`` without what an earlier run has found; SystemExit where it cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("results.jsonl", "log.txt", "table.md"):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        refuse(f"{out} cannot be written to: {error.strerror}; OUT is a folder")


def prove(chosen: Sequence[Stage], options: argparse.Namespace, out: Path) -> list[Outcome]:
    """Run the ``chosen`` stages, and judge the figures of a card."""
    outcomes = run_all(chosen, options.seconds, ROOT, out)
    if options.device == "cuda" and not options.quick and (judged := figures.judge(outcomes, SERVED)):
        note(judged, out)
        outcomes.append(judged)
    return outcomes


def seconds(text: str) -> float:
    """A time to wait; ArgumentTypeError unless it is finite and above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def main(arguments: Sequence[str]) -> int:
    """Run everything; returns 0 when all of it passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", type=Path, help="Folder for what is found; made where it is not there.")
    parser.add_argument("--checkpoint", default="en-de-base", help="A folder, or one that ships.")
    parser.add_argument("--bundles", type=Path, help="Where bundles are exported to; those that are there stay.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal.")
    parser.add_argument("--only", help="Stages that begin with one of these words, divided by commas.")
    parser.add_argument("--seconds", type=seconds, default=570, help="All of it takes at most.")
    parser.add_argument("--quick", action="store_true", help="Little of everything: a rehearsal.")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    if Path(options.checkpoint).is_dir():
        options.checkpoint = str(Path(options.checkpoint).resolve())
    # Not in OUT, from where only what is small comes back.
    with tempfile.TemporaryDirectory(prefix="dragoman-gpu-", ignore_cleanup_errors=True) as folder:
        options.bundles = (options.bundles or Path(folder, "bundles")).resolve()
        chosen = choose(options, Path(folder))
        make_ready(out)
        # Whoever ends this ends the stage that runs, too, and leaves no bundles behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        outcomes = prove(chosen, options, out)
    passed = bool(outcomes) and all(outcome.passed for outcome in outcomes)
    text = table(outcomes)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    said = summary(outcomes)
    said |= {each.stage: each.result for each in outcomes if each.stage == figures.NAME}  # with all its verdicts
    print(json.dumps({"device": options.device, "passed": passed, "stages": said}))
    print(f"\n{text}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
