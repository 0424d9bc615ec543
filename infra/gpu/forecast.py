#!/usr/bin/env python3
"""What an encoder would cost on a GPU that is not there: launches, bytes and products, as written and compiled.

    python infra/gpu/forecast.py CONFIG [--rows 512] [--seconds 2.0] [--assemble] [KEY=VALUE ...]

CONFIG is an experiment, for example `configs/voxceleb2_simclr.yaml`. Its encoder runs forward and backward in bf16 over
tensors without content (torch's FakeTensorMode), so that a CPU counts any size in seconds. TorchInductor then writes
the kernels that it would write for an H200. `--assemble` also has Triton compile each of them for sm_90: about half a
second a kernel. The last line is JSON.

"At least" is the sum over kernels of the longer of two times: its bytes at 4.0 TB/s, and its products at 600 TFLOP/s.
That is what an H200 reaches with large tensors. No cache and no wait is in it, so a measurement is above it.
The CPU's list of operations stands for that of the GPU. Private parts of torch 2.11 are used.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import re
import sys
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from rayssl import schema
from rayssl.experiment.config import Experiment
from rayssl.models.base import Backbone
from rayssl.models.encoder import Encoder, build_encoder
from rayssl.models.layout import lay_kernels

BYTES, FLOPS = 4.0e12, 600e12  # of an H200, a second
CARD = {
    "name": "NVIDIA H200",
    "major": 9,
    "minor": 0,
    "multi_processor_count": 132,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "warp_size": 32,
    "regs_per_multiprocessor": 65536,
    "shared_memory_per_block": 49152,
    "shared_memory_per_block_optin": 232448,
    "shared_memory_per_multiprocessor": 233472,
    "total_memory": 141 * 10**9,
    "L2_cache_size": 60 * 2**20,
    "gcnArchName": "",
    "is_integrated": False,
}
# They make no kernel: a result without content, or another view of what is there
FREE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view", "detach", "device")

# How many of the first inputs are read a second time: statistics first, then the values
AGAIN = {"native_batch_norm": 1, "native_batch_norm_backward": 2, "_softmax": 1}


def seconds(moved: float, computed: float) -> float:
    """The least time of one kernel."""
    return max(moved / BYTES, computed / FLOPS)


def size(value: object) -> int:
    """Bytes of a tensor; what is repeated by a stride of 0 counts once."""
    if not isinstance(value, Tensor):
        return 0
    different = 1
    for extent, stride in zip(value.shape, value.stride(), strict=True):
        different *= extent if stride else 1
    return different * value.element_size()


def products(operator: Any, arguments: Any, named: Any, result: Any) -> int:
    """Floating-point operations of a product or convolution, else 0."""
    count = flop_registry.get(getattr(operator, "overloadpacket", None))
    return 0 if count is None else int(count(*arguments, **named, out_val=result))


class Eager(TorchDispatchMode):
    """Counts what is called: kernels, bytes read and written, floating-point operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        shared = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        name = func.overloadpacket.__name__
        if not (func.is_view or shared or name in FREE):
            moved = sum(map(size, tree_leaves((args, kwargs, result))))
            moved += sum(map(size, args[: AGAIN.get(name, 0)]))
            self.calls.append((name, moved, products(func, args, kwargs, result)))
        return result

    def found(self) -> dict[str, float]:
        """The sums."""
        return {
            "launches": len(self.calls),
            "gb": sum(moved for _, moved, _ in self.calls) / 1e9,
            "tflop": sum(computed for *_, computed in self.calls) / 1e12,
            "ms_at_least": 1e3 * sum(seconds(moved, computed) for _, moved, computed in self.calls),
        }


class Driver:
    """Triton's driver of a card that is not there: it says what to compile for."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


class Compiled:
    """The kernels that TorchInductor writes for the forward and the backward graph of one encoder."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        self.runs: Counter[str] = Counter()  # of Triton's kernels
        self.outside: list[tuple[str, int, int]] = []  # calls of libraries, their bytes and products

    @contextmanager
    def card(self) -> Iterator[None]:
        """While it is open, torch takes the machine for one with an H200. Nothing may run then."""
        import triton
        from torch import _inductor
        from torch._dynamo.device_interface import CudaInterface
        from torch._inductor import async_compile, config, graph, scheduler
        from torch._inductor.runtime import triton_helpers
        from torch.utils import _triton

        card, writing = types.SimpleNamespace(**CARD), graph.GraphLowering.codegen

        def written(lowering: Any) -> Any:
            code = writing(lowering)
            self._count(code[0].value)
            return code

        def kept(_: object, name: str, source: str, *others: object, **named: object) -> Any:
            self.sources[name] = source
            return types.SimpleNamespace()

        there = {"is_available": lambda: True, "is_triton_capable": lambda device=None: True}
        there |= {"current_device": lambda: 0, "get_compute_capability": lambda device=None: 90}
        there |= {"get_device_properties": lambda device=None: card}
        cuda = {"is_available": lambda: True, "get_device_properties": lambda device=None: card}
        cuda |= {"get_device_capability": lambda device=None: (9, 0), "current_device": lambda: 0}
        cuda |= {"device_count": lambda: 1, "_lazy_init": lambda: None, "synchronize": lambda device=None: None}
        cuda |= {"get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8)}
        cuda |= {"set_rng_state": lambda *state: None, "_exchange_device": lambda index: 0}
        cuda |= {"_maybe_exchange_device": lambda index: 0}
        with ExitStack() as stack:
            for name, value in cuda.items():
                stack.enter_context(patch.object(torch.cuda, name, value))
            for name, value in there.items():
                stack.enter_context(patch.object(CudaInterface, name, staticmethod(value)))
            for name in ("get_device_properties", "current_device"):
                stack.enter_context(patch.object(CudaInterface.Worker, name, staticmethod(there[name])))
            for module in (_triton, scheduler, _inductor.utils):
                if hasattr(module, "has_triton"):
                    stack.enter_context(patch.object(module, "has_triton", lambda: True))
            stack.enter_context(patch.object(triton_helpers, "set_driver_to_gpu", lambda: None))
            stack.enter_context(patch.object(triton.runtime.driver, "_active", Driver()))
            stack.enter_context(patch.object(async_compile.AsyncCompile, "triton", kept))
            stack.enter_context(patch.object(async_compile.AsyncCompile, "wait", lambda *arguments: None))
            stack.enter_context(patch.object(graph.GraphLowering, "codegen", written))
            # a kernel's source says its bytes only then
            stack.enter_context(config.patch(benchmark_kernel=True, force_disable_caches=True, compile_threads=1))
            yield

    def lower(self, graph: torch.fx.GraphModule, inputs: list[Any], *, backward: bool) -> None:
        """Has TorchInductor write the kernels of ``graph``, which was traced on a CPU, for the card."""
        from torch._guards import TracingContext, tracing
        from torch._inductor.compile_fx import compile_fx_inner
        from torch.fx.passes.fake_tensor_prop import FakeTensorProp

        moved, mode = copy.deepcopy(graph), FakeTensorMode(allow_non_fake_inputs=True)
        for node in moved.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
            node.meta.pop("eager_input_vals", None)
            if node.target is torch.ops.aten.view.default:  # a convolution there may lay its result otherwise
                node.target = torch.ops.aten.reshape.default
        with mode:
            there = [
                torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="cuda")
                if isinstance(each, Tensor)
                else each
                for each in inputs
            ]
        FakeTensorProp(moved, mode).propagate_dont_convert_inputs(*there)
        for node in moved.graph.nodes:
            if getattr(node.target, "overloadpacket", None) in flop_registry:
                values = [each.meta["val"] if isinstance(each, torch.fx.Node) else each for each in node.args]
                computed = products(node.target, values, node.kwargs, node.meta["val"])
                name = node.target.overloadpacket.__name__
                self.outside.append((name, sum(map(size, tree_leaves((values, node.meta["val"])))), computed))
        fixed = [] if backward else list(range(len(there)))
        # there it would say where the kernels are, and warn that fp32 products use no TF32
        with self.card(), tracing(TracingContext(mode)), redirect_stderr(io.StringIO()):
            compile_fx_inner(moved, there, is_backward=backward, static_input_idxs=fixed)

    def _count(self, code: str) -> None:
        begin = code.rindex("\nclass Runner") if "\nclass Runner" in code else code.rindex("\ndef call(")
        end = code.find("\ndef benchmark_compiled_module", begin)
        self.runs.update(re.findall(r"(\w+)\.run\(", code[begin : end if end > 0 else None]))

    def found(self) -> dict[str, float]:
        """The sums."""
        bytes_ = {name: 1e9 * float(_said("kernel_num_gb", source) or 0) for name, source in self.sources.items()}
        moved = {name: bytes_.get(name, 0) * times for name, times in self.runs.items()}
        outside = sum(seconds(each, computed) for _, each, computed in self.outside)
        return {
            "launches": self.runs.total() + len(self.outside),
            "written_kernels": len(self.sources),
            "gb": (sum(moved.values()) + sum(each for _, each, _ in self.outside)) / 1e9,
            "tflop": sum(computed for *_, computed in self.outside) / 1e12,
            "ms_at_least": 1e3 * (sum(moved.values()) / BYTES + outside),
        }

    def assemble(self) -> dict[str, Any]:
        """Has Triton compile each kernel for sm_90: how many there are, and the message of each that fails."""
        from torch._inductor.codecache import PyCodeCache

        failed: dict[str, str] = {}
        with self.card():
            for number, (name, source) in enumerate(self.sources.items(), 1):
                if sys.stderr.isatty():
                    print(f"\r  sm_90: kernel {number} of {len(self.sources)} ", end="", file=sys.stderr, flush=True)
                try:
                    getattr(PyCodeCache.load(source), name)._precompile_worker()
                except Exception as error:  # the others are still wanted
                    failed[name] = repr(error)[:300]
        return {"assembled": len(self.sources) - len(failed), "failed": failed}


def _said(key: str, source: str) -> str | None:
    found = re.search(rf"'{key}': ([\d.e+-]+)", source)
    return None if found is None else found.group(1)


def encoder_of(arguments: argparse.Namespace) -> Encoder:
    """The experiment's encoder with the layout of a GPU."""
    path = Path(arguments.config)
    tree = schema.override(schema.load_yaml(path.read_text(), str(path)), arguments.overrides)
    with unset_fake_temporarily():
        encoder = build_encoder(schema.parse(Experiment, tree, str(path)).encoder, arguments.rate)
    for part in encoder.modules():
        if isinstance(part, Backbone):
            part.channels_last = True
    lay_kernels(encoder)
    return encoder


def passes(arguments: argparse.Namespace, mode: FakeTensorMode) -> tuple[Any, dict[str, Tensor], Tensor]:
    """The encoder as a function of its state and of samples, and both without content."""
    encoder = encoder_of(arguments)
    state = {
        name: mode.from_tensor(value.detach()).requires_grad_(value.requires_grad)
        for name, value in (*encoder.named_parameters(), *encoder.named_buffers())
    }

    def embed(state: dict[str, Tensor], wave: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            embeddings: Tensor = torch.func.functional_call(encoder, state, (wave,))
        return embeddings

    return embed, state, torch.empty(arguments.rows, round(arguments.seconds * arguments.rate))


def eager(arguments: argparse.Namespace) -> Eager:
    """Forward and backward as they are written."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        embed, state, wave = passes(arguments, mode)
        with Eager() as counted:
            embed(state, wave).sum().backward()
    return counted


def compiled(arguments: argparse.Namespace) -> Compiled:
    """The same two passes as TorchInductor would have them."""
    import torch._inductor.lowering  # the decompositions look it up
    from torch._functorch.aot_autograd import aot_function, make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    made = Compiled()

    def compiler(backward: bool) -> Any:
        def lowered(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
            made.lower(graph, inputs, backward=backward)
            return make_boxed_func(graph.forward)

        return lowered

    cut, table = min_cut_rematerialization_partition, select_decomp_table()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, patch.object(torch.compiler, "is_compiling", lambda: True):
        embed, state, wave = passes(arguments, mode)
        both = aot_function(embed, compiler(False), compiler(True), partition_fn=cut, decompositions=table)
        both(state, wave).sum().backward()
    return made


def main() -> None:
    """Counts the one encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    for name, value in (("rows", 512), ("seconds", 2.0), ("rate", 16000)):
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--assemble", action="store_true")
    arguments = parser.parse_intermixed_args()
    plain = eager(arguments)
    largest: Counter[str] = Counter()
    for name, moved, computed in plain.calls:
        largest[name] += round(1e9 * seconds(moved, computed))
    for name, nanoseconds in largest.most_common(8):
        print(f"  {nanoseconds / 1e6:7.2f} ms  {sum(each == name for each, *_ in plain.calls):4d}  {name}")
    other = compiled(arguments)
    found: dict[str, Any] = {"eager": plain.found(), "compiled": other.found()}
    if arguments.assemble:
        found["compiled"] |= other.assemble()
    rounded = {
        way: {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
        for way, figures in found.items()
    }
    print(json.dumps({"forecast": rounded}))


if __name__ == "__main__":
    main()
