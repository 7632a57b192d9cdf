"""One process or many: what of accelerate and torch a training run goes through.

accelerate starts the processes and says how they work together: DDP, FSDP or DeepSpeed. FSDP is done here,
with torch's fully_shard, and DeepSpeed is called by `training.zero`, because on CPUs accelerate makes DDP of
the one and lone processes of the other, without a word; what runs on many GPUs is thus what the tests run in
two processes. All average gradients over the processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, patch_environment
from torch import Tensor
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from videonarrator.modeling.narrator import Narrator
from videonarrator.schema import NarratorError
from videonarrator.training.zero import check_deepspeed, with_zero

PATIENCE = timedelta(minutes=30)
"""How long processes wait for each other: one of them writes states and the checkpoint."""

MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Processes:
    """The processes of a run as one of them sees them.

    precision: fp32, bf16 or fp16 (arithmetic; what is trained is kept in float32).
    """

    def __init__(self, precision: str) -> None:
        AcceleratorState._reset_state(reset_partial_state=False)  # of an earlier run in this process
        if precision == "fp16" and not torch.cuda.is_available():
            raise NarratorError("optimization.precision=fp16 needs a GPU: take bf16 or fp32")
        self.sharded, self.deepspeed = asked_for("FSDP"), asked_for("DEEPSPEED")
        if self.deepspeed:
            check_deepspeed(precision)
        with patch_environment(ACCELERATE_USE_FSDP="false", ACCELERATE_USE_DEEPSPEED="false"):
            self.accelerator = Accelerator(
                cpu="LOCAL_RANK" in os.environ and not torch.cuda.is_available(),  # else each is alone there
                mixed_precision=MIXED[precision],
                kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
            )
        self.precision = precision
        self.launcher = os.getppid()

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

    @property
    def first_here(self) -> bool:
        """Whether this is the first process on its machine."""
        return self.accelerator.is_local_main_process

    def prepare(self, narrator: Narrator, optimizer_of: Any, clip_norm: float = 1.0) -> tuple[Any, Any]:
        """The model as this process has it, and its optimizer.

        optimizer_of: makes the optimizer from the narrator, once its parameters are what they will be.
        clip_norm: see `clip`; DeepSpeed wants it before.
        """
        if self.sharded:
            narrator.to(self.device)
            shard(narrator)
            return narrator, self.accelerator.prepare(optimizer_of(narrator))
        if self.deepspeed:
            narrator.to(self.device)
            return with_zero(narrator, optimizer_of(narrator), clip_norm, self.precision)
        model = self.accelerator.prepare_model(narrator)
        return model, self.accelerator.prepare(optimizer_of(narrator))

    def forward(self, model: Any, tensors: Mapping[str, Tensor], **how: Any) -> dict[str, Tensor]:
        """What `Narrator.forward` makes of a micro-batch's tensors, on this process's device."""
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}
        with self.accelerator.autocast():
            made = model(**moved, **how)
        if self.sharded and not torch.is_grad_enabled():
            model.reshard()  # else done at the end of the backward pass
        return made

    def accumulate(self, model: Any, tensors: Mapping[str, Tensor], *, last: bool) -> dict[str, Tensor]:
        """Forward and backward. DDP exchanges gradients in that of a step's `last` micro-batch only."""
        if self.deepspeed:
            model.set_gradient_accumulation_boundary(last)
            made = self.forward(model, tensors, whole=self.number > 1)
            model.backward(made["loss"])
            return made
        with nullcontext() if last or self.sharded else self.accelerator.no_sync(model):
            made = self.forward(model, tensors, whole=self.number > 1)
            self.accelerator.backward(made["loss"])
        return made

    def clip(self, model: Any, optimizer: Any, clip_norm: float) -> float:
        """Scale gradients down to a norm of `clip_norm` over all parameters; their norm before.

        DeepSpeed does this and the update in one, which it leaves out where the norm is no number.
        """
        if self.deepspeed:
            model.step()
            return float(model.get_global_grad_norm())
        self.accelerator.unscale_gradients(optimizer)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trained, clip_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        summed: Any = self.accelerator.reduce(values, "sum") if self.number > 1 else values
        return summed

    @property
    def orphaned(self) -> bool:
        """Whether what started the processes is gone, so that nothing would end them all."""
        return self.number > 1 and os.getppid() != self.launcher

    def alike(self, number: int) -> bool:
        """Whether all processes have the same number. None goes on before all have asked."""
        gathered: Any = self.accelerator.gather(torch.tensor([number], device=self.device))
        return len(set(gathered.tolist())) == 1

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


@contextmanager
def telling_once() -> Iterator[None]:
    """Of several processes that fail, let the first say why; the others end without a word.

    Their connection to the one that failed is lost, or they have found the same. Where a process was killed,
    and could say nothing, another one does.
    """
    try:
        yield
    except Exception as error:
        if not _first_to_fail():
            raise SystemExit(2) from error
        if isinstance(error, RuntimeError) and any(word in str(error) for word in LOST):
            raise NarratorError(
                f"another process of this run is gone ({str(error).splitlines()[0]}): it was killed, or its "
                "machine failed. The same command goes on from the last state"
            ) from error
        raise


LOST = ("Connection closed by peer", "Connection reset by peer", "NCCL")
"""What torch says where a process that it exchanges tensors with is gone."""


def _first_to_fail() -> bool:
    """Whether no other process of this launch has failed before."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10))
        return store.add("failed", 1) == 1
    except RuntimeError:  # the launcher is gone, too
        return True


def asked_for(kind: str) -> bool:
    """Whether the launch asks for FSDP or DEEPSPEED."""
    return os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true"


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
