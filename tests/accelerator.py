"""An accelerator that is not there: tensors that say they are on another device than the CPU.

Their values lie on the CPU, so that a whole step runs, with what it decides by values. What would
be an error or a wait on a GPU is not hidden: an operation on tensors of both devices raises, and
every value that Python looks at is noted with the line that does. The device is called "meta",
which torch knows without a driver.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_PACKAGE = str(Path(__file__).parents[1] / "pyrocell")
_aten = torch.ops.aten
PRODUCTS = {_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm, _aten.mv, _aten.dot, _aten.addmv}
# the host waits for the device: a value, or a shape, is wanted
_WAITS = {_aten._local_scalar_dense, _aten.nonzero, _aten._unique2, _aten.unique_dim, _aten.equal}
_WAITS |= {_aten.unique_consecutive, _aten.masked_select, _aten.repeat_interleave}
_WAITS |= {_aten._linalg_check_errors, _aten._linalg_eigh}
_TO_OTHER = {_aten._to_copy, _aten.copy_}


class OnDevice(Tensor):
    """A tensor that says it is on the device; `held` are its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: Tensor):
        self.held = held

    def __repr__(self) -> str:
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Accelerator.current.run(op, args, kwargs or {})


class Counts:
    """CSR counts on the device, as far as the model asks; torch has no such subclass."""

    layout, is_sparse = torch.sparse_csr, False

    def __init__(self, x: Tensor):
        self.parts = [OnDevice(p) for p in (x.crow_indices(), x.col_indices(), x.values())]
        self.dense, self.shape, self.dtype, self.device = x.to_dense(), x.shape, x.dtype, DEVICE

    def crow_indices(self) -> Tensor:
        return self.parts[0]

    def col_indices(self) -> Tensor:
        return self.parts[1]

    def values(self) -> Tensor:
        return self.parts[2]

    def to_dense(self) -> Tensor:
        return OnDevice(self.dense)

    def dim(self) -> int:
        return 2

    def __len__(self) -> int:
        return self.shape[0]


class _Made(TorchFunctionMode):
    """Tensors of Python's numbers: made on the CPU and moved, as on a GPU."""

    def __torch_function__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if f is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            Accelerator.current.waits[_line()] += 1
            return args[0].held.tolist()
        if f is torch.Tensor.new_tensor:
            kwargs = {"dtype": args[0].dtype, "device": args[0].device} | kwargs
            f, args = torch.tensor, args[1:]
        if f in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            where = kwargs.pop("device")
            return f(*args, **kwargs).to(where)
        return f(*args, **kwargs)


class Accelerator(TorchDispatchMode):
    """Within the block, tensors can be on the device.

    Parameters
    ----------
    rounded
        Applied to both factors of a float32 matrix product, to try a product in less precision.

    Attributes
    ----------
    waits
        How often which line of the package made the host wait for the device.
    operations
        Operations on the device so far.
    """

    current: Accelerator

    def __init__(self, rounded: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.rounded, self.operations = rounded, 0
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> Accelerator:
        Accelerator.current = self
        self._made = _Made()
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._made.__exit__(*error)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(op, args, kwargs or {})

    def run(self, op: Any, args: Any, kwargs: dict) -> Any:
        """Do an operation on the values, and say where its result is."""
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        here = any(isinstance(t, OnDevice) for t in given)
        wanted = kwargs.get("device")
        on_device = here if wanted is None else torch.device(wanted) == DEVICE
        packet = op.overloadpacket
        if here:
            self._check(op, packet, given)
            self.operations += 1
            indices = args[1] if packet in (_aten.index, _aten.index_put, _aten.index_put_) else ()
            masks = any(t is not None and t.dtype == torch.bool for t in indices)
            waits = packet in _WAITS and kwargs.get("output_size") is None
            if waits or masks or (packet in _TO_OTHER and not on_device):
                self.waits[_line()] += 1
        if on_device and not here and wanted is not None and packet is _aten._to_copy:
            self.waits[_line() + " (to the device)"] += 1
        if wanted is not None:
            kwargs = kwargs | {"device": torch.device("cpu")}
        if self.rounded and packet in PRODUCTS and given[0].dtype == torch.float32:
            args = (*args[:-2], *(OnDevice(self.rounded(_held(t))) for t in args[-2:]))
        with torch.utils._python_dispatch._disable_current_modes():
            out = op(*tree_map(_held, args), **tree_map(_held, kwargs))
        if not on_device:
            return out
        out = tree_map(lambda t: OnDevice(t) if isinstance(t, Tensor) else t, out)
        return return_and_correct_aliasing(op, args, kwargs, out) if here else out

    def _check(self, op: Any, packet: Any, given: list[Tensor]) -> None:
        """What a GPU refuses: tensors of both devices, but for numbers and copies."""
        others = [t for t in given if not isinstance(t, OnDevice) and t.dim()]
        if others and packet not in _TO_OTHER:
            shapes = [tuple(t.shape) for t in others]
            raise RuntimeError(f"{op} on tensors of two devices, {shapes} on the CPU: {_line()}")


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


def _line() -> str:
    """The package's line that is being run; in a backward pass there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_PACKAGE):
            return f"{Path(name).relative_to(_PACKAGE)}:{frame.f_code.co_name}:{frame.f_lineno}"
        frame = frame.f_back
    return "backward"


def to_device(module: nn.Module) -> None:
    """Move parameters and buffers."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(OnDevice(p.detach()), p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = OnDevice(b)


def batch_to_device(batch: dict[str, Tensor]) -> dict[str, Any]:
    """Move a minibatch."""
    return {n: Counts(t) if t.layout == torch.sparse_csr else OnDevice(t) for n, t in batch.items()}
