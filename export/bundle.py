"""A bundle: the folder that passes from export to serving, and its manifest. No torch.

=================  ====================================================================================
``manifest.json``  `Manifest`: what this is, every file with its hash, the graphs' signatures, the parity report, and
                   the probes
``tokenizer.model``  sentencepiece
``encoder.onnx``   source ids and lengths -> memory, and every decoder layer's cross-attention keys and values
``decoder.onnx``   one step for rows at different positions -> the k best tokens, caches written in place
``attention.onnx`` source and target -> weights and scores of every attention, all three kinds
``weights.bin``    the weights of these three, each once
``pooling.onnx``   memory and lengths -> one vector a text, its weights in it; where a pooling has been fitted
``admit.onnx``     encoded sources into rows of the caches, and ``reorder.onnx``, rows over others: where the host does
                   not touch the caches; not in int8, which is for the CPU
=================  ====================================================================================
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError, model_validator

from export.parity import Frozen, ParityReport
from export.probes import Probes
from model.config import ModelConfig
from model.tokenizer import END, PADDING, START, UNKNOWN

MANIFEST, TOKENIZER, WEIGHTS = "manifest.json", "tokenizer.model", "weights.bin"
GRAPHS = ("encoder", "decoder", "attention")
POOLING = "pooling"
"""The graph of sentence vectors, which not every bundle has."""
ADMIT, REORDER = "admit", "reorder"
"""The graphs of what happens to rows between steps, which bundles for other devices than the CPU have."""
LOG_SOFTMAX = "log_softmax"
"""The decoder's output of all tokens' log-probabilities, which bundles written by earlier versions do not have."""
FILES = (TOKENIZER, *(f"{graph}.onnx" for graph in GRAPHS), WEIGHTS)
"""What every bundle has."""
BUNDLES = Path(__file__).parent / "bundles"
"""The bundles that ship, a folder each."""
DEFAULT = "en-de-base"
"""The one that is served unless another is asked for."""


class BundleError(ValueError):
    """A bundle that must not be served; the message lists every fault found."""

    def __init__(self, folder: Path, faults: list[str]) -> None:
        super().__init__(f"bundle {folder} cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))
        self.faults = faults


class ParityError(RuntimeError):
    """The exported graphs do not compute what the model computes."""


class TensorSpec(Frozen):
    """One input or output of a graph; symbolic dimensions are names."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class GraphSpec(Frozen):
    """What goes into a graph and what comes out."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class FileSpec(Frozen):
    """A file of the bundle."""

    sha256: str
    bytes: int


class SpecialIds(Frozen):
    """Token ids with a meaning of their own."""

    padding: int = PADDING
    unknown: int = UNKNOWN
    start: int = START
    end: int = END


class Limits(Frozen):
    """The most tokens a request may have, special ones included."""

    source_tokens: int
    target_tokens: int


class CacheSpec(Frozen):
    """How key and value caches lie in memory. They must start as zeros: a NaN in padding poisons its neighbours."""

    dtype: Literal["float32", "float16", "int8"] = "float32"
    """int8: one calibrated scale a channel, in the graphs; an int8 bundle written by an earlier version has float32."""
    layout: tuple[str, ...] = ("rows", "heads", "capacity", "head_width")
    in_place: Literal[True] = True
    """Bind one buffer as a cache's input and as its output."""

    @classmethod
    def of(cls, precision: str) -> Self:
        """The caches of a bundle written now."""
        match precision:
            case "int8":
                return cls(dtype="int8")
            case "fp16":
                return cls(dtype="float16")
        return cls()


def capacity(positions: int) -> int:
    """The capacity of a cache for ``positions``: the odd number from there on.

    Heads lie one capacity apart. Were that a power of two, they would fall onto the same few lines of the processor's
    caches, and all of them would come to a new page of memory at the same step.
    """
    return positions | 1


class Quantisation(Frozen):
    """How weights and activations are rounded."""

    weights: str = "int8, symmetric, ±63, one scale an output channel"
    activations: str = "uint8, one calibrated scale a layer; around 128, or from 0 after ReLU"
    kept_in_fp32: tuple[str, ...] = ("LayerNorm", "biases", "positions", "attention")


class Provenance(Frozen):
    """What a bundle was made from, and with what."""

    checkpoint_sha256: str
    versions: Mapping[str, str]


class Manifest(Frozen):
    """The typed, versioned contract between exporter and server."""

    format: Literal[2] = 2
    name: str
    pairs: tuple[tuple[str, str], ...]
    languages: Mapping[str, int]
    """Languages to the id of the token that asks for them."""
    special: SpecialIds = SpecialIds()
    model: ModelConfig
    precision: Literal["fp32", "fp16", "int8"]
    attention: Literal["standard", "fused"]
    """The bodies of the attention functions."""
    limits: Limits
    cache: CacheSpec = CacheSpec()
    quantisation: Quantisation | None
    files: Mapping[str, FileSpec]
    graphs: Mapping[str, GraphSpec]
    provenance: Provenance
    parity: ParityReport | None
    probes: Probes | None = None
    """With which a server proves that it computes what this bundle means; bundles written before have none."""

    @property
    def poolings(self) -> tuple[str, ...]:
        """How texts can be made into one vector, the best first."""
        return ("attention", "mean") if POOLING in self.graphs else ("mean",)

    @property
    def gives_log_softmax(self) -> bool:
        """Whether a decoding step can give the log-probabilities of all tokens; bundles written before cannot."""
        return any(spec.name == LOG_SOFTMAX for spec in self.graphs["decoder"].outputs)

    @property
    def caches(self) -> tuple[TensorSpec, ...]:
        """The decoder's caches: keys and values of the target, of the source, and of the source's last token."""
        return tuple(
            spec for spec in self.graphs["decoder"].inputs if spec.name.startswith(("self_", "cross_", "last_"))
        )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        faults = []
        if self.special != SpecialIds():
            faults.append(f"special ids are {self.special}, this version reads {SpecialIds()}")
        if max(self.limits.source_tokens, self.limits.target_tokens) > self.model.max_positions:
            faults.append(f"limits {self.limits} are more than the model's {self.model.max_positions} positions")
        missing = sorted({language for pair in self.pairs for language in pair} - set(self.languages))
        if missing or not self.pairs:
            faults.append(
                f"languages without a token: {', '.join(missing)}" if missing else "there are no language pairs"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self


def file_names(graphs: Iterable[str]) -> tuple[str, ...]:
    """The files of a bundle with ``graphs``, less the manifest."""
    return (*FILES, *(f"{graph}.onnx" for graph in (POOLING, ADMIT, REORDER) if graph in graphs))


def shipped() -> list[str]:
    """Names of the bundles that ship."""
    return sorted(path.parent.name for path in BUNDLES.glob(f"*/{MANIFEST}"))


def locate(bundle: str | Path) -> Path:
    """The folder of a bundle: text that names one that ships means that one; ``./NAME`` or a `Path`, the folder."""
    return BUNDLES / bundle if isinstance(bundle, str) and bundle in shipped() else Path(bundle)


def digest(path: Path) -> FileSpec:
    """Hash and size of a file."""
    contents = path.read_bytes()
    return FileSpec(sha256=hashlib.sha256(contents).hexdigest(), bytes=len(contents))


def read_manifest(folder: Path) -> Manifest:
    """Read and check a bundle, every file's hash included; BundleError lists everything wrong at once."""
    path = folder / MANIFEST
    if not path.is_file():
        hint = "" if folder.is_dir() else f": no such folder. These ship and go by name: {', '.join(shipped())}"
        raise BundleError(folder, [f"{MANIFEST} is missing{hint}"])
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        faults = [
            f"{MANIFEST}: {'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors()
        ]
        raise BundleError(folder, faults + _file_faults(folder, FILES, None)) from None
    faults = _file_faults(folder, file_names(manifest.graphs), manifest.files)
    faults += [f"{MANIFEST}: graph {graph} is not described" for graph in GRAPHS if graph not in manifest.graphs]
    if manifest.parity is None:
        faults.append(f"{MANIFEST}: there is no parity report; export the checkpoint again")
    elif not manifest.parity.passed:
        faults.append(f"{MANIFEST}: the parity gate failed; export the checkpoint again")
    if faults:
        raise BundleError(folder, faults)
    return manifest


def _file_faults(folder: Path, names: Sequence[str], files: Mapping[str, FileSpec] | None) -> list[str]:
    """Of the files ``names`` those that are missing, or other than ``files`` says when that could be read."""
    faults = []
    for name in names:
        if not (folder / name).is_file():
            faults.append(f"{name} is missing")
        elif files is None:
            continue
        elif name not in files:
            faults.append(f"{name} is not in {MANIFEST}")
        elif (found := digest(folder / name)) != files[name]:
            faults.append(
                f"{name} does not match {MANIFEST}: {found.bytes} bytes, expected {files[name].bytes}"
                if found.bytes != files[name].bytes
                else f"{name} does not match the sha256 in {MANIFEST}"
            )
    return faults
