"""Counts what would make the host wait for a GPU, in code that runs on the CPU.

A wait is an operation whose result the host needs before it can go on: a number, a shape that depends on values, or a
copy through memory that is not pinned. An operation counts once, at the innermost line of `rayssl` that caused it.

All tensors lie on the CPU here. `DEVICE` stands for the GPU: code that is counted must be given it as its device. A
tensor is on the host if it was made without a device, or from such tensors alone. Every other tensor is on the device,
those too that were made before the count; its ``.device`` is `DEVICE`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import rayssl

_ROOT = Path(rayssl.__file__).parent
# what works on data that lies on the host: no wait, whatever it does
ON_THE_HOST = {
    "transfer.py send": "copies from the host through pinned memory",
    "transfer.py Fetched.arrays": "waits for its copies, after the backward pass has been launched",
    "views/augment.py _remade": "decides by the host's copy of the keys",
    "views/stretch.py pitched": "takes the longest of factors that are on the host",
}
# the step counters of torch's optimisers lie on the CPU unless they are fused or capturable
_TORCH = str(Path(torch.__file__).parent)
_OPTIMISERS = f"{_TORCH}/optim"
_NUMBERS = {"_local_scalar_dense", "equal", "is_nonzero", "_linalg_check_errors", "multinomial", "histc"}
_SHAPES = {
    "nonzero", "masked_select", "bincount", "repeat_interleave", "_unique", "_unique2", "unique_dim",
    "unique_consecutive",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# seen as Python calls only, because on the CPU they copy nothing
_TO_THE_HOST = {"cpu", "numpy", "tolist", "__array__"}
_FROM_THE_HOST = {"tensor", "as_tensor", "asarray"}  # from Python or NumPy

DEVICE = torch.device("cpu", 0)  # is not equal to torch.device("cpu"), which is the host
_HOST = "_lies_on_the_host"  # an attribute of tensors


class Waits(Counter[str]):
    """How often each kind of wait was seen at each line: ``methods/daso.py:77 _local_scalar_dense``."""

    def saw(self, name: str) -> None:
        frame = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(_OPTIMISERS):
                return
            if file.startswith(str(_ROOT)):
                place = str(Path(file).relative_to(_ROOT))
                if f"{place} {frame.f_code.co_qualname.partition('.<locals>')[0]}" not in ON_THE_HOST:
                    self[f"{place}:{frame.f_lineno} {name}"] += 1
                return
            frame = frame.f_back  # type: ignore[assignment]

    def by_file(self) -> dict[str, int]:
        """The number of waits by the file that causes them."""
        found: Counter[str] = Counter()
        for line, count in self.items():
            found[line.partition(":")[0]] += count
        return dict(found)


class _Operations(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        told = (kwargs or {}).get("output_size") is not None  # the shape of repeat_interleave
        if name in _NUMBERS or (name in _SHAPES and not told) or (name in _INDEXING and _depends_on_values(name, args)):
            self.waits.saw(name)
        return func(*args, **(kwargs or {}))


def _depends_on_values(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an index is a mask. A mask with one value to write is a fill, which needs no shape."""
    masked = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return masked and not (name != "index" and args[2].numel() == 1 and args[2].ndim == 0)


class _Calls(TorchFunctionMode):
    """Sees copies between host and device, and keeps a note of which tensors lie on the host."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if func == _DEVICE_OF:
            return torch.device("cpu") if on_host(args[0]) else DEVICE
        before = list(_tensors([*args, *kwargs.values()]))
        # what was on the host before the call: one that changes a tensor in place leaves it where it is
        host = bool(before) and all(on_host(each) for each in before)
        # a device in torch's own code may be one that C++ has found, which knows nothing of `DEVICE`
        inside = sys._getframe(1).f_code.co_filename.startswith(_TORCH)
        wanted = None if inside else _wanted(name, args, kwargs)
        if _copies(name, args, host, wanted):
            self.waits.saw(name)
        made = func(*args, **kwargs)
        if wanted is not None:
            before_was, host = host, wanted.index is None and wanted.type == "cpu"
            if host != before_was and any(made is known for known in before):
                made = made.clone()  # here it is on both sides already
        elif not before:
            host = True  # made without a device
        for each in _tensors(made):
            if not any(each is known for known in before):
                setattr(each, _HOST, host)
        return made


_DEVICE_OF = torch.Tensor.device.__get__  # type: ignore[attr-defined]


def on_host(tensor: Tensor) -> bool:
    """Whether ``tensor`` would lie on the host of a GPU."""
    return getattr(tensor, _HOST, False)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in ``value``, also in lists of lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def _wanted(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device that a call asks for, None if it names none."""
    asked = kwargs.get("device")
    if name == "to" and asked is None:
        asked = next((each for each in args[1:] if isinstance(each, (str, torch.device, Tensor))), kwargs.get("other"))
    if name == "cuda" or (isinstance(asked, Tensor) and not on_host(asked)):
        return DEVICE
    return None if asked is None else torch.device("cpu" if isinstance(asked, Tensor) else asked)


def _copies(name: str, args: tuple[Any, ...], host: bool, wanted: torch.device | None) -> bool:
    """Whether a call copies between the host and the device. ``host``: all tensors in ``args`` lie on the host."""
    to_device = wanted is not None and (wanted.index is not None or wanted.type != "cpu")
    if name in _FROM_THE_HOST or name in ("to", "cuda"):
        given = on_host(args[0]) if isinstance(args[0], Tensor) else True  # whether it is on the host before
        return to_device if given else wanted is not None and not to_device
    if name == "copy_":
        return on_host(args[0]) != on_host(args[1])
    if host or not args:
        return False
    if name in ("__getitem__", "__setitem__", "index_put", "index_put_"):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(_must_be_sent(each) for each in (*index, *args[2:3]))
    return name in _TO_THE_HOST or name == "new_tensor"


def _must_be_sent(value: Any) -> bool:
    """Whether an index or a value to write is copied to the device. A single number goes with the kernel."""
    return isinstance(value, (list, np.ndarray)) or (isinstance(value, Tensor) and on_host(value) and value.ndim > 0)


def _from_numpy(array: np.ndarray, made: Callable[[np.ndarray], Tensor] = torch.from_numpy) -> Tensor:
    """`torch.from_numpy`, which a `TorchFunctionMode` does not see."""
    tensor = made(array)
    setattr(tensor, _HOST, True)
    return tensor


def of_graph(graph: torch.fx.GraphModule) -> list[str]:
    """The operations of a compiled graph that wait. A count by `counted` would switch the compiler off."""
    found = []
    for node in graph.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            name = node.target._schema.name.removeprefix("aten::")
            given = torch.fx.map_arg(node.args, lambda each: each.meta["val"])
            if name in _NUMBERS | _SHAPES or (name in _INDEXING and _depends_on_values(name, given)):
                found.append(name)
    return found


@contextmanager
def counted() -> Iterator[Waits]:
    """Counts the waits of this thread's code, the backward pass included."""
    waits = Waits()
    with _Operations(waits), _Calls(waits), mock.patch.object(torch, "from_numpy", _from_numpy):
        yield waits
