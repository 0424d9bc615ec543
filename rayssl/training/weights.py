"""The weights of an encoder, wherever they are: in a run, a checkpoint, a published folder or another toolkit's file.

A published folder (``rayssl publish``) holds `MODEL` in the format safetensors, ``config.yaml``, a model card
``README.md``, and `ABOUT`, which is written last and has the hash of the weights. Weights are data everywhere: pickled
code is never executed.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rayssl import storage
from rayssl.errors import CheckpointError, ConfigError
from rayssl.models.ecapa import EcapaConfig
from rayssl.models.ecapa_weights import Library, converted, library_of
from rayssl.models.encoder import Encoder, EncoderConfig
from rayssl.training import checkpoint

MODEL, ABOUT = "model.safetensors", "rayssl.json"
VERSION = 1
_HEAD = "head."
_FOREIGN_FILES = ("embedding_model.ckpt", "avg_model.pt")  # in folders of speechbrain, of wespeaker
_FOREIGN_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_STYLES: dict[Library, str] = {"speechbrain": "speechbrain", "wespeaker": "kaldi"}
Head: TypeAlias = "tuple[Tensor, Tensor]"


@dataclass(frozen=True)
class EncoderWeights:
    """The ``state`` of an encoder, which lies at ``uri``.

    ``head``: the weight ``[C, D]`` and the bias ``[C]`` of the linear classifier behind it, if there is one.
    ``described``: the model in one line. ``library``: whose weights of ECAPA-TDNN they are; None for rayssl's.
    """

    uri: str
    state: dict[str, Tensor]
    described: str
    head: Head | None = None
    library: Library | None = None


def is_published(uri: str) -> bool:
    """Whether there is a published folder at ``uri``."""
    return storage.exists(storage.join(uri, ABOUT))


def about(uri: str) -> dict[str, Any]:
    """What `ABOUT` of the published folder at ``uri`` says. Raises `CheckpointError` if it cannot be read as such."""
    place = storage.join(uri, ABOUT)
    try:
        found = json.loads(storage.read_text(place))
        version = found["version"]
    except (ValueError, TypeError, KeyError):
        raise CheckpointError(f"{place}: not the description of a published encoder; publish it again") from None
    if version != VERSION:
        raise CheckpointError(
            f"{place}: of version {version}, this rayssl reads {VERSION}; use the rayssl that wrote it"
        )
    return dict(found)


def of_run(uri: str) -> EncoderWeights:
    """The weights at ``uri``, a checkpoint of a run or a published folder.

    Raises `CheckpointError` naming the damaged file, or `StorageError`.
    """
    return _published(uri) if is_published(uri) else _of_checkpoint(checkpoint.load(uri, mapped=True))


def packed(state: Mapping[str, Tensor], head: Head | None) -> bytes:
    """The content of `MODEL` for the weights of an encoder and of its classifier."""
    whole = {name: value.detach().to("cpu").clone().contiguous() for name, value in state.items()}
    if head is not None:
        whole |= {f"{_HEAD}weight": head[0].contiguous(), f"{_HEAD}bias": head[1].contiguous()}
    return safetensors.torch.save(whole, {"format": "pt"})


def read(source: str) -> EncoderWeights:
    """The weights that ``encoder.start_from`` names.

    Args:
        source: folder or URI of a run, of one of its checkpoints, of a published encoder, of an encoder of speechbrain
            (``embedding_model.ckpt``) or of wespeaker (``avg_model.pt``), or such a file itself.

    Raises:
        CheckpointError: there are no such weights, or they cannot be read without executing code.
        StorageError: the storage cannot be read.
    """
    if source.endswith(_FOREIGN_SUFFIXES) and storage.is_file(source):
        return _foreign(source)
    if is_published(source):
        return _published(source)
    for name in _FOREIGN_FILES:
        place = storage.join(source, name)
        if storage.exists(place):
            return _foreign(place)
    return _of_checkpoint(checkpoint.load(checkpoint.find_weights(source), mapped=True))


def start(encoder: Encoder, config: EncoderConfig, source: str) -> str:
    """Gives ``encoder``, which was built of ``config``, the weights at ``source``, see `read`. Returns their URI.

    Raises:
        ConfigError: the settings of the encoder are not those of the weights. The message names the key, or the first
            weight that does not fit, with both shapes.
        CheckpointError, StorageError: see `read`.
    """
    try:
        found = read(source)
    except CheckpointError as error:
        raise CheckpointError(f"encoder.start_from: {error}") from None
    state = found.state
    if found.library is not None:
        _check_settings(config, found.library, found.uri)
        state = {f"backbone.{name}": value for name, value in state.items()}
    problem = checkpoint.mismatch(encoder, state)
    if problem is not None:
        raise ConfigError(
            f"encoder.start_from: {found.uri}: {problem}; these are the weights of {found.described}: set the same "
            "sizes in 'encoder'"
        )
    encoder.load_state_dict(state)
    return found.uri


def _check_settings(config: EncoderConfig, library: Library, uri: str) -> None:
    """Raises `ConfigError` if ``config`` is not for weights of ``library``: other features, or another network."""
    whose = f"encoder.start_from: {uri} has weights of {library}'s ECAPA-TDNN; "
    style, backbone, frontend = _STYLES[library], config.backbone, config.frontend
    if config.beside is not None:
        raise ConfigError(f"{whose}leave out encoder.beside")
    if not isinstance(backbone, EcapaConfig) or backbone.variant != library:
        raise ConfigError(f"{whose}set encoder.backbone.name=ecapa encoder.backbone.variant={library}")
    if frontend.short_name != "fbank" or getattr(frontend, "style", "") != style:
        raise ConfigError(
            f"{whose}they were trained on other features than those of encoder.frontend.name={frontend.short_name}: "
            f"set encoder.frontend.name=fbank encoder.frontend.style={style}"
        )


def _of_checkpoint(loaded: checkpoint.Loaded) -> EncoderWeights:
    whole, prefix, head = loaded.state["method"], loaded.state["encoder_prefix"], loaded.state.get("head_prefix")
    state = {name[len(prefix) :]: value for name, value in whole.items() if name.startswith(prefix)}
    parts = (None, None) if head is None else (whole.get(f"{head}linear.{part}") for part in ("weight", "bias"))
    weight, bias = parts
    classifier = None if weight is None or bias is None else (weight.float().clone(), bias.float().clone())
    return EncoderWeights(loaded.uri, state, loaded.meta.architecture, classifier)


def _published(uri: str) -> EncoderWeights:
    place, said = storage.join(uri, MODEL), about(uri)
    data = storage.read_bytes(place)
    if hashlib.sha256(data).hexdigest() != said.get("sha256"):
        raise CheckpointError(f"{place}: damaged (its hash differs from {ABOUT}); publish it again, or fetch it again")
    state = _tensors(place, data)
    names = [name for name in state if name.startswith(_HEAD)]
    parts = {name.removeprefix(_HEAD): state.pop(name) for name in names}
    head = (parts["weight"], parts["bias"]) if len(parts) == 2 else None
    return EncoderWeights(uri, state, str(said.get("architecture")), head)


def _foreign(place: str) -> EncoderWeights:
    """The weights in a file of another toolkit, under our names."""
    state = _tensors(place, storage.read_bytes(place))
    library = library_of(state)
    if library is None:
        raise CheckpointError(
            f"{place}: not the weights of ECAPA-TDNN of speechbrain or wespeaker (it has {', '.join(list(state)[:3])}, "
            "...); give one of these, a run of rayssl or a published folder"
        )
    named = converted(state, library)
    stem, project = named.get("stem.conv.weight"), named.get("project.weight")
    sizes = [] if stem is None or project is None else [
        f"channels={stem.shape[0]}", f"embedding_dim={project.shape[0]}", f"mfa_channels={project.shape[1] // 2}",
        f"frontend.n_mels={stem.shape[1]}",
    ]  # fmt: skip
    return EncoderWeights(place, named, f"{library}'s ecapa({', '.join(sizes)})", library=library)


def _tensors(place: str, data: bytes) -> dict[str, Tensor]:
    """The tensors in a file of safetensors or of `torch.save`, by name, without executing code that it may hold."""
    try:
        if place.endswith(".safetensors"):
            found: Any = safetensors.torch.load(data)
        else:
            with warnings.catch_warnings(action="ignore"):  # of the age of the file
                found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        kind: Literal["safetensors", "torch"] = "safetensors" if place.endswith(".safetensors") else "torch"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise CheckpointError(
            f"{place}: no weights that {kind} reads without executing code ({reason}); give another file"
        ) from None
    for wrapped in ("state_dict", "model"):
        inner = found.get(wrapped) if isinstance(found, Mapping) else None
        found = inner if isinstance(inner, Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{place}: holds no state_dict, that is, tensors by name; give another file")
    return {str(name).removeprefix("module."): value for name, value in found.items()}
