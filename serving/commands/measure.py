"""``dragoman loadtest`` and ``dragoman bench``, which read their options themselves."""

import typer

from serving.commands.console import require


def loadtest(context: typer.Context) -> None:
    """Load a service with Locust and measure it; see dragoman loadtest --help."""
    require("locust", "loadtest")
    if "--compare" in context.args:
        require("torch", "compare")
        require("ctranslate2", "compare")
    from loadtest.run import main

    raise typer.Exit(main(context.args))


def bench(context: typer.Context) -> None:
    """Measure this engine against CTranslate2 and PyTorch on this machine; see dragoman bench --help."""
    require("torch", "bench")
    require("onnx", "bench")
    from serving.bench.run import main

    raise typer.Exit(main(context.args))
