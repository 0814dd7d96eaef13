"""What the commands share: one clear message when something is wrong, and settings and search as options."""

import contextlib
import errno
import importlib.util
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console

from serving.cores import cores
from serving.settings import PREFIX, Settings

if TYPE_CHECKING:
    from serving.options import TranslateOptions

Model = TypeVar("Model", bound=BaseModel)
errors = Console(stderr=True, highlight=False)
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""Errors without a file's name that only standard output meets."""

BeamSize = Annotated[int, typer.Option(help="Hypotheses followed at one time; 1 is greedy search.")]
LengthPenalty = Annotated[float, typer.Option(help="Rank by score / tokens ** this: the larger, the longer.")]


def fail(message: str) -> NoReturn:
    """One clear message on standard error, and exit status 1."""
    errors.print(message, markup=False, soft_wrap=True)
    raise typer.Exit(1)


def standard_input() -> bytes:
    """All of standard input, or fail."""
    if sys.stdin is None:
        fail("standard input is closed: redirect a file to it, such as < text.txt")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        fail(f"standard input: {error.strerror}")


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Let text go out as UTF-8 whatever the terminal's encoding, as it comes in.

    What cannot be read or written is one line, and a closed pipe (``| head``) none; both end with exit status 1.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if sys.stdout is None:
        errors.print("standard output is closed: there is nowhere to write to")
        sys.exit(1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        # What is still in the buffer cannot be written: Python must not try once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            place = error.filename or ("standard output" if error.errno in CANNOT_WRITE else None)
            errors.print(f"{place}: {error.strerror}" if place else str(error), markup=False, soft_wrap=True)
        sys.exit(1)


def require(module: str, extra: str) -> None:
    """Fail with the way out when an optional package is missing."""
    if importlib.util.find_spec(module) is None:
        fail(f"{module} is not installed: run make test, or in a clone: pip install --editable '.[{extra}]'")
    # PyTorch counts the machine's cores, and not how many of them a container may use.
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command``, whose first parameter is `Settings`, an option for every setting."""
    own = list(inspect.signature(command).parameters.values())[1:]
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                (field.annotation if field.annotation in (int, float) else str) | None,
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
            refuse_settings(error)
        command(settings, **{name: value for name, value in given.items() if name not in names})

    wrapped.__doc__, wrapped.__name__ = command.__doc__, command.__name__
    wrapped.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
    return wrapped


def _default(field: Any) -> list[str]:
    """The default to be told, unless it is in the description."""
    return [] if field.default_factory or field.default is None else [str(field.default)]


def refuse_settings(error: ValidationError) -> NoReturn:
    """Fail with every setting that is wrong, a line each."""
    # A default that is made of a setting cannot be made of one that is refused: that is no fault of its own.
    faults = [fault for fault in error.errors() if fault["type"] != "default_factory_not_called"]
    fail("\n".join(map(_setting_fault, faults)))


def _setting_fault(fault: Any) -> str:
    place = ".".join(map(str, fault["loc"]))
    said = fault["msg"].removeprefix("Value error, ")
    return f"setting {place}: {said}, not {fault['input']!r}" if place else said


def options_of(**given: Any) -> "TranslateOptions":
    """Those of ``given`` that are not None as `TranslateOptions`."""
    from serving.options import TranslateOptions

    try:
        return TranslateOptions.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        fail("\n".join(_option_fault(fault) for fault in error.errors()))


def _option_fault(fault: Any) -> str:
    return f"--{str(fault['loc'][-1]).replace('_', '-')}: {fault['msg']}, not {fault['input']!r}"


def read_settings(model: type[Model], recipe: Path | None, assignments: Sequence[str]) -> Model:
    """``model`` from a JSON file of settings, if there is one, and ``name=value`` after it; or fail."""
    chosen = _recipe(recipe) if recipe else {}
    for assignment in assignments:
        _put(chosen, assignment)
    try:
        return model.model_validate(chosen)
    except ValidationError as error:
        refuse_settings(error)


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
