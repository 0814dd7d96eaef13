"""The command ``dragoman``: thin verbs that import what they need when they are called."""

import sys

import typer

from serving.commands import corpus, evaluate, export, lines, measure, serve, train, vectors, verify
from serving.commands.console import errors, streams

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for verb in (serve.serve, lines.translate, lines.encode, export.export, verify.verify, train.train):
    app.command()(verb)
app.add_typer(corpus.app, name="corpus")
app.command()(evaluate.evaluate)
app.add_typer(vectors.app, name="vectors")
for verb in (measure.loadtest, measure.bench):
    # They read their own options, --help among them.
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)(
        verb
    )


def main() -> None:
    """Run the command that was asked for."""
    with streams():
        try:
            app()
        except ImportError as error:
            if error.name != "onnxruntime":
                raise
            errors.print(str(error), markup=False, soft_wrap=True)
            sys.exit(1)


if __name__ == "__main__":
    main()
