"""Models too large for one device: each of N processes holds 1/N of every layer's weights (PyTorch's FSDP2, `fully_shard`).

Accelerate's own preparation of FSDP2 models refuses CPU processes and asks for an optimizer, hence `fully_shard` itself, under
accelerate's launcher or torchrun.

A layer's weights are gathered from all processes before its forward and again before its backward pass, and dropped after each.
So all processes make their passes in step, each on its own batch. Activations and gradients are plain tensors of one process.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import init_device_mesh

from gradprism.runtime.errors import ModelError
from gradprism.runtime.ranks import Ranks


def sharding_asked_by_launcher() -> bool:
    """Whether `accelerate launch --use_fsdp` started this process."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")


def join_group(ranks: Ranks) -> None:
    """Makes all processes one group whose collectives run by gloo on the CPU and by NCCL on CUDA devices."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=PrefixStore("group", ranks.store), rank=ranks.rank, world_size=ranks.world)


def leave_group() -> None:
    """Undoes `join_group`."""
    if dist.is_initialized():
        dist.destroy_process_group()


def shard_model(name_or_path: str, full: Any | None, ranks: Ranks, device: str) -> Any:
    """The model `name_or_path` in shards on `device` of every process; to be called by all of them.

    `full` is the model as it was loaded by the first process, on its CPU, and None in the others, which hold a model's whole weights
    at no time.

    Raises `ModelError` for a model that does not say which of its modules are layers, to be gathered one at a time.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoConfig, AutoModelForCausalLM

    if full is not None:
        tensors = {**dict(full.named_parameters()), **dict(full.named_buffers())}
        types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
        ranks.publish("model", {"dtype": str(full.dtype).removeprefix("torch."), "types": types})
    told = ranks.wait_for("model")
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, told["dtype"]))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if tensors.keys() != told["types"].keys():
        raise ModelError(
            f"model {name_or_path!r}: is put together in another way than its config.json says, so it cannot be sharded"
        )
    for name, tensor in tensors.items():  # some models keep a few weights in float32
        tensor.data = tensor.data.to(getattr(torch, told["types"][name]))
    model.requires_grad_(False).eval()
    whole = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in whole]
    if not layers:
        raise ModelError(f"{type(model).__name__}: does not say which of its modules are layers, so it cannot be sharded")
    mesh = init_device_mesh(torch.device(device).type, (ranks.world,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device=device)
    model.tie_weights()
    weights = full.state_dict() if full is not None else {}
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    # Buffers are not sharded; those that are computed rather than stored, such as rotary frequencies, are in no state dict.
    loaded = dict(full.named_buffers()) if full is not None else {}
    for name, buffer in model.named_buffers():
        if full is not None:
            buffer.copy_(loaded[name])
        dist.broadcast(buffer, 0)
    return model


def any_failed(failed: bool) -> bool:
    """Whether any process says `failed`; to be called by all of them, before each step."""
    flag = torch.tensor([int(failed)])
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())
