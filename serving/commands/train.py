"""``dragoman train``."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from serving.commands.console import errors, fail, read_settings, require


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
    require("torch", "train")
    from model.train import Run, TrainSettings

    settings = read_settings(TrainSettings, recipe, set_ or [])
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
