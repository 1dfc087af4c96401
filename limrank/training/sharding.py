"""A model whose weights lie in parts over all workers (FSDP2), and how parts become whole.

The numbers are those of one worker, but for rounding. Whatever makes a part whole is done
by all workers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limrank.training.processes import process

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh


def mesh_of(device: torch.device) -> DeviceMesh:
    """All processes of the group, which make it at once."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (process()[1],))


def shard(model: nn.Module, mesh: DeviceMesh, mixed_precision: bool) -> None:
    """Split a model's weights over the processes of a mesh, in place, each part on its
    process's device: those of each decoder layer by themselves, so that one layer's at a time
    are whole. Before that the process holds the model in its main memory. It waits for no other.

    Args:
        mixed_precision: compute in bfloat16, and add gradients up in float32.
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


def whole(value: Any, keep: bool = True) -> Any:
    """A tensor of which each process has a part, whole and on the CPU; all else as it is.
    Nested dictionaries and lists likewise.

    Args:
        keep: False in a process that only takes part: it gets None in place of what was made whole.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(value, dict):
        return {key: whole(each, keep) for key, each in value.items()}
    if isinstance(value, list):
        return [whole(each, keep) for each in value]
    if not isinstance(value, DTensor):
        return value
    found = value.full_tensor()
    return found.cpu() if keep else None


def part_of(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, split as ``like`` is; the tensor where that is whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _decoder_layers(model: nn.Module) -> set[str]:
    """The classes whose modules transformers would not split over devices."""
    return {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
