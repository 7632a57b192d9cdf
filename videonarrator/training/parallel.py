"""One process or many: what of accelerate and torch a training run goes through.

accelerate starts the processes and says how they work together: DDP, DeepSpeed, or FSDP. FSDP is done here,
with torch's fully_shard, because accelerate makes DDP of an FSDP configuration on CPUs without a word; what
runs on many GPUs is thus what the tests run in two processes. All average gradients over the processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, patch_environment
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from videonarrator.modeling.narrator import Narrator
from videonarrator.schema import NarratorError

MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Processes:
    """The processes of a run as one of them sees them.

    precision: fp32, bf16 or fp16 (arithmetic; what is trained is kept in float32).
    """

    def __init__(self, precision: str) -> None:
        AcceleratorState._reset_state(reset_partial_state=False)  # of an earlier run in this process
        self.sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if precision == "fp16" and not torch.cuda.is_available():
            raise NarratorError("optimization.precision=fp16 needs a GPU: take bf16 or fp32")
        with patch_environment(ACCELERATE_USE_FSDP="false"):
            self.accelerator = Accelerator(mixed_precision=MIXED[precision])
        self.deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        if self.deepspeed:
            plugin: Any = self.accelerator.state.deepspeed_plugin
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1  # read by DeepSpeed's own log only
        self.precision = precision

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def number(self) -> int:
        return self.accelerator.num_processes

    @property
    def index(self) -> int:
        return self.accelerator.process_index

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.accelerator.is_main_process

    def prepare(self, narrator: Narrator, optimizer_of: Any) -> tuple[Any, Any]:
        """The model as this process has it, and its optimizer.

        optimizer_of: makes the optimizer from the narrator, once its parameters are what they will be.
        """
        if self.sharded:
            narrator.to(self.device)
            shard(narrator)
            return narrator, self.accelerator.prepare(optimizer_of(narrator))
        if self.deepspeed:
            return self.accelerator.prepare(narrator, optimizer_of(narrator))
        model = self.accelerator.prepare_model(narrator)
        return model, self.accelerator.prepare(optimizer_of(narrator))

    def forward(self, model: Any, tensors: Mapping[str, Tensor], **how: Any) -> dict[str, Tensor]:
        """What `Narrator.forward` makes of a micro-batch's tensors, on this process's device."""
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}
        with self.accelerator.autocast():
            return model(**moved, **how)

    def accumulate(self, model: Any, tensors: Mapping[str, Tensor], *, last: bool) -> dict[str, Tensor]:
        """Forward and backward; gradients are exchanged in that of a step's `last` micro-batch only."""
        self.accelerator.sync_gradients = last
        alone = last or self.sharded or self.deepspeed
        with nullcontext() if alone else self.accelerator.no_sync(model):
            made = self.forward(model, tensors, whole=self.number > 1)
            self.accelerator.backward(made["loss"])
        return made

    def clip(self, narrator: nn.Module, optimizer: Any, largest: float) -> float:
        """Scale gradients down to a norm of `largest` over all parameters; their norm before."""
        if self.deepspeed:  # does so by itself, in its step
            engine: Any = self.accelerator.deepspeed_engine_wrapped
            return float(engine.get_global_grad_norm() or 0.0)
        self.accelerator.unscale_gradients(optimizer)
        trained = [parameter for parameter in narrator.parameters() if parameter.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trained, largest)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        summed: Any = self.accelerator.reduce(values, "sum") if self.number > 1 else values
        return summed

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


def shard(narrator: Narrator) -> None:
    """Shard every parameter over the processes: a group for each layer, one for the rest."""
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    for layer in narrator.base.model.layers:
        fully_shard(layer, reshard_after_forward=reshard)
    fully_shard(narrator, reshard_after_forward=False)


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, gathered from all processes where it is sharded (all of them must call this)."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().contiguous()


def like(tensor: Tensor, own: Tensor) -> Tensor:
    """A whole tensor as `own` is: on its device, and sharded where that is."""
    if isinstance(own, DTensor):
        return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)
    return tensor.to(own.device)
