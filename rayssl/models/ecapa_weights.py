"""The weights of ECAPA-TDNN of speechbrain and of wespeaker under the names of `rayssl.models.ecapa.Ecapa`.

Both toolkits share the network's parts. wespeaker's differs in three points, see `EcapaConfig.variant`, and in one more
that only moves weights: of the groups of a Res2Net block, its last one is passed through, and here the first one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Library: TypeAlias = Literal["speechbrain", "wespeaker"]

_MARKS: dict[Library, tuple[str, ...]] = {
    "speechbrain": ("blocks.0.conv.conv.weight", "asp_bn.norm.weight", "fc.conv.weight"),
    "wespeaker": ("layer1.conv.weight", "layer2.se_res2block.0.conv.weight", "pool.linear1.weight"),
}
# their names and ours, without weight, bias and statistics; {n} is a block, counted from 1 there and from 0 here
_NAMES: dict[Library, Sequence[tuple[str, str]]] = {
    "speechbrain": (
        (r"blocks\.0\.conv\.conv", "stem.conv"),
        (r"blocks\.0\.norm\.norm", "stem.norm"),
        (r"blocks\.(\d+)\.tdnn1\.(conv|norm)\.\2", "blocks.{n}.before.{1}"),
        (r"blocks\.(\d+)\.res2net_block\.blocks\.(\d+)\.(conv|norm)\.\3", "blocks.{n}.groups.{1}.{2}"),
        (r"blocks\.(\d+)\.tdnn2\.(conv|norm)\.\2", "blocks.{n}.after.{1}"),
        (r"blocks\.(\d+)\.se_block\.conv1\.conv", "blocks.{n}.squeeze"),
        (r"blocks\.(\d+)\.se_block\.conv2\.conv", "blocks.{n}.excite"),
        (r"mfa\.(conv|norm)\.\1", "mfa.{0}"),
        (r"asp\.tdnn\.conv\.conv", "pool.context"),
        (r"asp\.tdnn\.norm\.norm", "pool.norm"),
        (r"asp\.conv\.conv", "pool.score"),
        (r"asp_bn\.norm", "pool_norm"),
        (r"fc\.conv", "project"),
    ),
    "wespeaker": (
        (r"layer1\.conv", "stem.conv"),
        (r"layer1\.bn", "stem.norm"),
        (r"layer(\d+)\.se_res2block\.0\.conv", "blocks.{n}.before.conv"),
        (r"layer(\d+)\.se_res2block\.0\.bn", "blocks.{n}.before.norm"),
        (r"layer(\d+)\.se_res2block\.1\.convs\.(\d+)", "blocks.{n}.groups.{1}.conv"),
        (r"layer(\d+)\.se_res2block\.1\.bns\.(\d+)", "blocks.{n}.groups.{1}.norm"),
        (r"layer(\d+)\.se_res2block\.2\.conv", "blocks.{n}.after.conv"),
        (r"layer(\d+)\.se_res2block\.2\.bn", "blocks.{n}.after.norm"),
        (r"layer(\d+)\.se_res2block\.3\.linear1", "blocks.{n}.squeeze"),
        (r"layer(\d+)\.se_res2block\.3\.linear2", "blocks.{n}.excite"),
        (r"conv", "mfa.conv"),
        (r"pool\.linear1", "pool.context"),
        (r"pool\.linear2", "pool.score"),
        (r"bn", "pool_norm"),
        (r"linear", "project"),
    ),
}
_FIRST_BLOCK: dict[Library, int] = {"speechbrain": 1, "wespeaker": 2}
_LINEAR = (".squeeze.weight", ".excite.weight", "project.weight")  # convolutions of kernel 1 in speechbrain


def library_of(state: Mapping[str, Tensor]) -> Library | None:
    """Whose ECAPA-TDNN has these weights; None if it is of neither."""
    return next((library for library, marks in _MARKS.items() if all(mark in state for mark in marks)), None)


def converted(state: Mapping[str, Tensor], library: Library) -> dict[str, Tensor]:
    """The weights of an ``Ecapa`` whose ``variant`` is ``library``. A name that is not known stays as it is.

    What a checkpoint of wespeaker has of the classifier of its training is left out.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if library == "wespeaker" and name.startswith("projection."):
            continue
        found[_renamed(name, library)] = value
    for name in [name for name in found if name.endswith(_LINEAR) and found[name].dim() == 3]:
        found[name] = found[name][:, :, 0]
    return _first_group_passed(found) if library == "wespeaker" else found


def _renamed(name: str, library: Library) -> str:
    module, _, leaf = name.rpartition(".")
    for pattern, ours in _NAMES[library]:
        match = re.fullmatch(pattern, module)
        if match is not None:
            block = int(match[1]) - _FIRST_BLOCK[library] if "{n}" in ours else 0
            return f"{ours.format(*match.groups(), n=block)}.{leaf}"
    return name


def _first_group_passed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moves the channels of the last group of each block before the others, where they come and where they go."""
    changed = dict(state)
    for name, value in state.items():
        match = re.match(r"(blocks\.\d+)\.(before|after)\.(conv|norm)\.", name)
        inner = None if match is None else state.get(f"{match[1]}.groups.0.conv.weight")
        if match is None or inner is None or value.dim() == 0:
            continue
        if match[2] == "before":
            changed[name] = torch.roll(value, len(inner), dims=0)
        elif name.endswith("conv.weight"):
            changed[name] = torch.roll(value, len(inner), dims=1)
    return changed
