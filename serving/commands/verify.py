"""``dragoman verify``: whether a bundle computes here what it means."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from serving.commands.console import errors, fail, require


def verify(
    bundle: Annotated[str, typer.Argument(help="A bundle: a folder, or one that ships.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(help="The checkpoint it was exported from: after the probes the whole gate of the export runs."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, or cuda, the first GPU.")] = "cpu",
    cuda_graphs: Annotated[bool, typer.Option(help="On a GPU, record steps: as the setting cuda_graphs does.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to compute with; all cores unless given.")] = None,
) -> None:
    """Translate a bundle's probes, whose tokens are known, as a replica does before it is ready."""
    from export.bundle import BundleError, locate, read_manifest
    from export.probes import PAST
    from serving.cores import cores
    from serving.runtime.devices import DEVICES, faults_of, runtime_on
    from serving.runtime.selfcheck import SelfCheckError, prove
    from serving.settings import Settings

    if device not in DEVICES:
        fail(f"--device is {device!r}; it takes {' or '.join(DEVICES)}")
    if cuda_graphs and device == "cpu":
        fail("--cuda-graphs is for --device cuda: a CPU records no steps")
    folder = locate(bundle)
    console = Console()
    rows = Settings.model_fields["rows"].get_default(
        call_default_factory=True, validated_data={"gpus": int(device == "cuda")}
    )
    try:
        manifest = read_manifest(folder)
        if manifest.probes is None:
            fail(f"{bundle} has no probes: it was exported by an earlier version; export the checkpoint again")
        if not manifest.probes.probes:
            fail(
                f"{bundle} has no probes: no sentence that was tried keeps the margin of {manifest.probes.margin} nats"
            )
        with errors.status(f"translating the probes of {bundle}"):
            with faults_of(device):
                runtime = runtime_on(device, folder, manifest, threads or cores(), cuda_graphs=cuda_graphs)
                batch = runtime.batch(rows)
            proof = prove(runtime, batch, manifest.probes)
    except (BundleError, SelfCheckError) as error:
        fail(str(error))
    probes = manifest.probes
    table = Table("source tokens", "target tokens", "least margin", "mean log-probability")
    for probe in probes.probes:
        table.add_row(
            str(len(probe.source)), str(len(probe.tokens)), f"{probe.margin:.2f}", f"{probe.mean_log_probability:.4f}"
        )
    console.print(table)
    console.print(
        f"{bundle} is right on this {device}: {proof.probes} probes, {proof.tokens} tokens in all, alone, among up to "
        f"{proof.rows} rows and in searches, in {proof.seconds:.1f} s"
    )
    console.print(
        f"every step's best token leads by more than {probes.margin} nats; mean log-probabilities are within "
        f"{probes.tolerance} of the manifest's; the longest has {probes.longest} tokens"
        + ("" if probes.longest >= PAST else f", for none of {PAST} was found that keeps the margin")
    )
    if checkpoint is not None:
        _gate(folder, checkpoint, console)


def _gate(folder: Path, name: str, console: Console) -> None:
    require("torch", "export")
    from export.bundle import BundleError
    from export.exporter import check_again
    from model.checkpoint import CheckpointError, locate
    from serving.commands.gate import show

    try:
        with errors.status(f"comparing it with PyTorch and {name}"):
            report = check_again(folder, locate(name))
    except (CheckpointError, BundleError, OSError) as error:
        fail(str(error))
    show(report, console)
    if not report.passed:
        fail(f"the parity gate failed: {folder} does not compute what {name} computes")
