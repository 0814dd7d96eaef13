"""An engine that has shown, on this computer, that it finds the tokens which its bundle promises."""

from export.bundle import BundleError, Manifest
from serving.engine.engine import Engine
from serving.engine.work import Work
from serving.runtime.devices import faults_of, runtime_on
from serving.runtime.interface import DecoderBatch, Runtime
from serving.runtime.selfcheck import SelfCheckError, fill, prove
from serving.settings import Settings


def proven_engine(settings: Settings, manifest: Manifest, cores: int, work: Work | None = None) -> Engine:
    """The engine of the bundle of ``settings``, which computes with ``cores`` threads and counts in ``work``.

    BundleError when it finds other tokens than the bundle's probes have, DeviceError when the device cannot run it.
    """
    folder, device = settings.bundle, settings.device
    with faults_of(device):
        runtime = runtime_on(device, folder, manifest, cores, settings.gpus, settings.cuda_graphs)
        batch = runtime.batch(settings.rows)
        limits = settings.encode_tokens, settings.queue_tokens, settings.request_rows
        try:
            return Engine(runtime, batch, *limits, lambda: _prove(runtime, batch, settings), work)
        except SelfCheckError as error:
            if device == "cuda" and error.__cause__:
                raise error.__cause__ from None  # the GPU has failed, not the bundle
            way_out = "install the versions of constraints.txt, or export it again"
            raise BundleError(folder, [f"on this computer it is wrong: {error}; {way_out}"]) from None


def _prove(runtime: Runtime, batch: DecoderBatch, settings: Settings) -> None:
    if runtime.manifest.probes:
        prove(runtime, batch, runtime.manifest.probes)
    if settings.device == "cuda":
        # What a GPU's memory does not hold is better known now than when it is wanted.
        fill(runtime, batch, settings.encode_tokens)
