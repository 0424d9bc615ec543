"""Counts what would make the host wait for a GPU, in code that runs on the CPU.

A wait is an operation whose result the host needs before it can go on: a number, a shape that depends on values, or a
copy through memory that is not pinned. An operation counts once, at the innermost line of `rayssl` that caused it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
_OPTIMISERS = str(Path(torch.__file__).parent / "optim")
_NUMBERS = {"_local_scalar_dense", "equal", "is_nonzero"}
_SHAPES = {
    "nonzero", "masked_select", "bincount", "repeat_interleave", "_unique", "_unique2", "unique_dim",
    "unique_consecutive",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# seen as Python calls only, because on the CPU they copy nothing
_TO_THE_HOST = {"cpu", "numpy", "tolist", "__array__"}
_FROM_THE_HOST = {"tensor", "as_tensor", "from_numpy"}


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
        name = getattr(func, "__name__", "")
        if name in _TO_THE_HOST | _FROM_THE_HOST or (name == "to" and "cpu" in args[1:]):
            self.waits.saw(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Waits]:
    """Counts the waits of this thread's code, the backward pass included."""
    waits = Waits()
    with _Operations(waits), _Calls(waits):
        yield waits
