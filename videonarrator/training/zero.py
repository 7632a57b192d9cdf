"""ZeRO-2 by DeepSpeed: gradients and moments divided among the processes, each of which has all weights.

DeepSpeed is called directly, as FSDP is, so that it runs on CPUs, too. Weights keep their own precision
(what is trained float32) and the arithmetic is torch's autocast, as with one process.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from videonarrator.schema import NarratorError

MOMENTS = ("exp_avg", "exp_avg_sq")


def check_deepspeed(precision: str) -> None:
    """Raise `NarratorError` where DeepSpeed is absent, or more is asked of it than ZeRO-1 or 2."""
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    offload = os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if stage not in ("1", "2") or offload != "none" or file != "none":
        raise NarratorError(
            f"DeepSpeed with zero_stage {stage}, offload_optimizer_device {offload} and "
            f"deepspeed_config_file {file}: expected zero_stage 1 or 2 and nothing else, as in "
            "configs/accelerate/deepspeed_zero2.yaml; to divide the weights, too, launch with ACCELERATE=fsdp"
        )
    if precision == "fp16":
        raise NarratorError("optimization.precision=fp16 does not go with DeepSpeed here: take bf16, or fp32")
    with contextlib.redirect_stdout(sys.stderr):  # it builds its logger from stdout, which is the result's
        try:
            import deepspeed  # noqa: F401 # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise NarratorError(
                f"this launch asks for DeepSpeed, which cannot be imported ({error}): pip install "
                '"deepspeed>=0.19", or launch with ACCELERATE=ddp or ACCELERATE=fsdp'
            ) from error


def with_zero(
    narrator: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float, precision: str
) -> tuple[Any, ZeroOptimizer]:
    """DeepSpeed's engine, which stands for the model, and its optimizer. All processes call this."""
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed  # pyright: ignore[reportMissingImports]

        deepspeed.utils.logger.setLevel("WARNING")
        config = {
            # a micro-batch's size is read by DeepSpeed's own log only; steps are counted here
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": clip_norm,
            "zero_optimization": {"stage": int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))},
            "zero_allow_untested_optimizer": True,
            "torch_autocast": {
                "enabled": precision == "bf16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],  # gradients are exchanged in float32
            },
            "steps_per_print": 10**9,
        }
        engine, *_ = deepspeed.initialize(model=narrator, optimizer=optimizer, config=config)
    return engine, ZeroOptimizer(engine)


class ZeroOptimizer:
    """What a run needs of DeepSpeed's optimizer. `engine.step` clips and updates: `step` has nothing to do.

    DeepSpeed counts updates by group of parameters, not by parameter.
    """

    def __init__(self, engine: Any) -> None:
        self.zero = engine.optimizer
        self.param_groups = self.zero.param_groups

    def step(self) -> None: ...

    def zero_grad(self) -> None: ...

    def _groups(self) -> list[tuple[list[nn.Parameter], Tensor]]:
        """The parameters of each group, and the flat tensor that holds this process's part of them."""
        return list(zip(self.zero.bit16_groups, self.zero.single_partition_of_fp32_groups, strict=True))

    def updates(self, parameter: nn.Parameter) -> float:
        """How often a parameter has been updated."""
        for parameters, flat in self._groups():
            if any(one is parameter for one in parameters) and self.zero.optimizer.state.get(flat):
                return float(self.zero.optimizer.state[flat]["step"])
        return 0.0

    def moment(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """A parameter's whole moment, gathered from all processes; all of them must call this."""
        from deepspeed.utils import safe_get_full_optimizer_state  # pyright: ignore[reportMissingImports]

        return safe_get_full_optimizer_state(parameter, kind)

    def load(
        self, moments: Mapping[nn.Parameter, Mapping[str, Tensor]], updates: Mapping[nn.Parameter, float]
    ) -> None:
        """Go on from whole moments, and from the weights that the model now has."""
        from deepspeed.utils import safe_set_full_optimizer_state  # pyright: ignore[reportMissingImports]

        self.zero.refresh_fp32_params()
        state = self.zero.optimizer.state
        for group, (parameters, flat) in zip(self.param_groups, self._groups(), strict=True):
            number = max((updates.get(parameter, 0.0) for parameter in parameters), default=0.0)
            place = flat.device if group.get("fused") else "cpu"
            state[flat] = {"step": torch.tensor(number, device=place)}
            state[flat] |= {kind: torch.zeros_like(flat) for kind in MOMENTS}
        self.zero._lazy_init_hp_params_optimizer_state()  # links parameters to their parts of the moments
        for parameter, own in moments.items():
            for kind, tensor in own.items():
                safe_set_full_optimizer_state(parameter, tensor.to(parameter.device), kind)
