"""A model's forward and backward pass that fails, told in one line that names the module that was running."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from gradprism.runtime.errors import GradprismError, ModelError, one_line

# What is no fault of the model: memory that runs out is dealt with elsewhere.
_NOT_ITS_FAULT = (GradprismError, torch.OutOfMemoryError, MemoryError)


# Only torch's own allocator for devices raises `torch.OutOfMemoryError`. The CPU's, and what CUDA's driver and libraries take beside
# torch's, raise errors that their words tell apart; a library's handle is "not initialised" where its workspace does not fit.
_MEMORY_WORDS = re.compile(
    r"DefaultCPUAllocator|CUDA(?: driver)? error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
    r"|Triton Error \[CUDA\]: out of memory|CU[A-Z]+_STATUS_(?:\w+_)?ALLOC(?:ATION)?_FAILED|CU(?:BLAS|DNN|SOLVER)_STATUS_NOT_INITIALIZED"
)


def is_out_of_memory(error: BaseException) -> bool:
    """True where memory ran out, on the host or on a device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or _MEMORY_WORDS.search(str(error)) is not None


@contextmanager
def failures_named(model: nn.Module, again: Callable[[], Any] | None = None) -> Iterator[None]:
    """A block that runs `model`: whatever fails in it is raised as a `ModelError` of one line, with the module that was running.

    The module of a forward pass is known from the call stack. A backward pass runs outside of it: where `again` is given, which does
    both passes once more, hooks find the module then. Deliberate errors and a lack of memory are raised as they are.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, _NOT_ITS_FAULT) or is_out_of_memory(error):
            raise
        name = _module_on_stack(model, error.__traceback__) or (_module_in_backward(model, again) if again else None)
        where = f"module {name} of {type(model).__name__}" if name else type(model).__name__
        words = one_line(error) or "no message"
        raise ModelError(
            f"{where}: its forward or backward pass fails ({type(error).__name__}: {words}); {_advice(words)}"
        ) from error


def _advice(words: str) -> str:
    if "dtype" in words or "Float8" in words or "not implemented for" in words:
        return "try another --dtype or --attention, or a model whose weights are not quantised"
    return "the model does not run on text alone as it is loaded; try --attention eager, or another model"


def _module_on_stack(model: nn.Module, trace: TracebackType | None) -> str | None:
    """The path of the innermost module of `model` that has a frame in the traceback."""
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    found = None
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and names.get(id(owner)):
            found = names[id(owner)]
        trace = trace.tb_next
    return found


def _module_in_backward(model: nn.Module, again: Callable[[], Any]) -> str | None:
    """The innermost module whose output's gradient has come and whose input's has not, when both passes are run again and fail."""
    running: list[str] = []

    def entered(name: str) -> Callable[[Tensor], None]:
        return lambda gradient: running.append(name)

    def left(name: str) -> Callable[[Tensor], None]:
        def leave(gradient: Tensor) -> None:
            if name in running:
                del running[running.index(name) :]

        return leave

    def hook(values: Any, act: Callable[[Tensor], None]) -> None:
        for value in values if isinstance(values, tuple | list) else [values]:
            if isinstance(value, Tensor) and value.requires_grad:
                value.register_hook(act)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                before: Any = lambda module, args, kwargs, name=name: hook([*args, *kwargs.values()], left(name))  # noqa: E731
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                after: Any = lambda module, args, output, name=name: hook(output, entered(name))  # noqa: E731
                stack.callback(module.register_forward_hook(after).remove)
        try:
            again()
        except Exception:  # the same failure, which is being told already
            return running[-1] if running else None
    return None
