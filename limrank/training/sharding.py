"""Sharding a model's weights over all workers (FSDP2), and gathering them.

The numbers are those of one worker, except for rounding. All workers gather at the same time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limrank.training.processes import process

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh


def mesh_of(device: torch.device) -> DeviceMesh:
    """A mesh of all processes of the group. All of them call this at the same time."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (process()[1],))


def shard(model: nn.Module, mesh: DeviceMesh, mixed_precision: bool) -> None:
    """Shard a model in place over the processes of a mesh, each shard on its process's device.

    Each decoder layer is sharded separately, so that only one layer at a time is unsharded. The model
    has to be in the process's main memory. A process does not wait for the others.

    Args:
        mixed_precision: compute in bfloat16, and reduce gradients in float32.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if mixed_precision else None, reduce_dtype=torch.float32)
    layers = _decoder_layers(model)
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def is_sharded(model: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def gather(value: Any, keep: bool = True) -> Any:
    """A sharded tensor, gathered and on the CPU; any other value unchanged. Dictionaries and lists are
    treated recursively.

    Args:
        keep: False in a process that only takes part: it gets None instead of the gathered tensor.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(value, dict):
        return {key: gather(each, keep) for key, each in value.items()}
    if isinstance(value, list):
        return [gather(each, keep) for each in value]
    if not isinstance(value, DTensor):
        return value
    found = value.full_tensor()
    return found.cpu() if keep else None


def shard_of(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's shard of a tensor, sharded as ``like`` is; the whole tensor if that is unsharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _decoder_layers(model: nn.Module) -> set[str]:
    """The names of the classes whose modules transformers does not split over devices."""
    return {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
