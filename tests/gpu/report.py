"""Stages one after the other, each a process with a limit of time: what they said, as lines of JSON and as a table."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.processes import family, kill

NAMED = ("engine", "precision", "rows")
MEASURED = ("engine_ms", "graph_ms", "tokens_per_second", "times_peer")
"""What of a measurement is its name, and what is shown of it."""
MANY, FEW = 24, 12
"""Figures of a stage in the table, and in the line of JSON."""


@dataclass(frozen=True)
class Stage:
    """One check."""

    name: str
    command: Sequence[str]
    seconds: float
    """It may take."""
    environment: Mapping[str, str] | None = None
    """What it finds in its environment besides."""


@dataclass(frozen=True)
class Outcome:
    """What came of a stage."""

    stage: str
    passed: bool
    seconds: float
    reason: str
    """Why it did not pass, in one line."""
    result: Any
    """Its last line of JSON, where it gave one."""


def last_json(said: str) -> Any:
    """The last line of what was ``said`` that is a JSON object, or None."""
    for line in reversed(said.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except json.JSONDecodeError:
                continue
    return None


def run(stage: Stage, seconds: float, folder: Path, log: Path) -> Outcome:
    """Run ``stage`` in ``folder`` for so many ``seconds`` at most; what it says beside its JSON goes to ``log``."""
    begin = time.monotonic()
    # Not a pipe: whoever of its helpers is left behind would keep one open.
    with log.open("a", encoding="utf-8") as noted, tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        noted.write(f"\n== {stage.name}: {' '.join(stage.command)}\n")
        noted.flush()
        start = noted.tell()
        process = subprocess.Popen(
            stage.command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=noted,
            env={**os.environ, **(stage.environment or {})},
            start_new_session=True,
        )
        timed_out = False
        try:
            process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            if process.poll() is None:
                end(process)
        output.seek(0)
        noted.write(said := output.read())
    result = last_json(said)
    # Of a stage that gave no result, its last words are the reason.
    noted_now = log.read_bytes()[start:].decode(errors="replace")
    words = [line for line in noted_now.splitlines() if line.strip()]
    reason = ""
    if timed_out:
        reason = f"it took longer than {seconds:.0f} s"
    elif process.returncode:
        verdict = result if isinstance(result, dict) else {}
        if verdict.get("passed") is False:
            reason = verdict.get("reason") or "its check failed"
        else:
            reason = (words or ["it said nothing"])[-1]
        reason = f"status {process.returncode}: {reason[:300]}"
    return Outcome(stage.name, not reason, round(time.monotonic() - begin, 1), reason, result)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill ``process`` and all that it has started, those in sessions of their own too: they would keep the card."""
    # Whose parent has ended is nobody's child, so all are found before any is killed.
    started = family(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    kill(started, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(started, timeout=10)


def run_all(stages: Sequence[Stage], seconds: float, folder: Path, out: Path) -> list[Outcome]:
    """Run ``stages`` within so many ``seconds`` in all; each outcome is written into ``out`` as it comes."""
    deadline = time.monotonic() + seconds
    outcomes = []
    for stage in stages:
        left = deadline - time.monotonic()
        if left < 1:
            outcome = Outcome(stage.name, False, 0.0, "no time was left for it", None)
        else:
            outcome = run(stage, min(stage.seconds, left), folder, out / "log.txt")
        outcomes.append(outcome)
        note(outcome, out)
    return outcomes


def note(outcome: Outcome, out: Path) -> None:
    """Write ``outcome`` into ``out``, and say it."""
    with (out / "results.jsonl").open("a", encoding="utf-8") as written:
        written.write(json.dumps(asdict(outcome)) + "\n")
    print(line(outcome), flush=True)


def line(outcome: Outcome) -> str:
    """``outcome`` as a row of the table."""
    figures = "; ".join(f"{name} {value}" for name, value in headline(outcome.result).items())
    verdict = "passed" if outcome.passed else "FAILED"
    return f"| {outcome.stage} | {verdict} | {outcome.seconds:.1f} s | {'; '.join(filter(None, (outcome.reason, figures)))} |"


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of each stage of ``outcomes`` what fits into a line of JSON: all of it is in ``results.jsonl``."""
    said = {}
    for each in outcomes:
        said[each.stage] = {"passed": each.passed, "seconds": each.seconds, "figures": headline(each.result, FEW)}
        if each.reason:
            said[each.stage]["reason"] = each.reason
    return said


def headline(result: Any, most: int = MANY) -> dict[str, Any]:
    """``most`` figures of ``result``: single numbers, those of its parts under the part's name, and what
    was measured of engines."""
    figures: dict[str, Any] = {}
    if isinstance(result, dict):
        for name, value in result.items():
            if isinstance(value, dict):
                inner = headline(value)
                figures |= {f"{name}.{each}": figure for each, figure in inner.items()}
            elif isinstance(value, list):
                figures |= _of_list(value)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                figures[name] = round(value, 4)
    return dict(list(figures.items())[:most])


def _of_list(values: list[Any]) -> dict[str, float]:
    """What is measured of engines and numbers of rows, each under their name."""
    return {
        f"{' '.join(str(value[word]) for word in NAMED if word in value)} {figure}": value[figure]
        for value in values
        if isinstance(value, dict)
        for figure in MEASURED
        if value.get(figure) is not None
    }


def table(outcomes: Sequence[Outcome]) -> str:
    """All ``outcomes``, in Markdown."""
    return "\n".join(("| stage | | time | figures |", "|---|---|---|---|", *map(line, outcomes)))
