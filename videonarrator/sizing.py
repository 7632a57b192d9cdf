"""How large a narrator is: parameters and memory, from its shapes alone (no weight is read or drawn).

The narrator is put together by the project's own builders on torch's meta device, so that names, shapes and
what is trained are those of the real one. Weights, gradients, optimizer states and KV cache are exact. What a
step keeps besides is an estimate: the real forward (and backward) runs on tensors that have a shape, a dtype
and no contents, and the estimate is

    activations = max over time of the bytes of all tensors that the run has made and not yet let go
                  (gradients, which are there before, and the KV cache, which is counted apart, taken off)

Gradient checkpointing, mixed precision's copies, dropout's masks and the logits are thereby in it as torch
handles them on a CPU. Not in it: what a kernel takes inside one operation, an allocator's fragmentation, the
device's own context (on CUDA some GiB in all, while dropout's masks are smaller there).
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from videonarrator.config import configs_folder
from videonarrator.modeling.backbones import empty_backbone
from videonarrator.modeling.lora import merge_projector_lora
from videonarrator.modeling.narrator import Narrator
from videonarrator.schema import NarratorError
from videonarrator.settings import TrainConfig
from videonarrator.timeline import POSITIONS
from videonarrator.training.building import frozen_dtype, with_parts

GIB = 1 << 30

SUPERVISED, VISUAL = 0.09, 0.5
"""Shares of a sample's tokens on which the loss is computed, and which are visual (E-SyncVidStory's test
split)."""

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

PARTS = ("language_model", "embeddings", "lora", "projector", "position_table")


def shape_file(name: str) -> Path:
    """The model configuration meant by `name`: a config.json or its folder, or one of configs/shapes."""
    if Path(name).is_dir() or Path(name).is_file():
        return Path(name)
    shapes = configs_folder() / "shapes"
    file = shapes / f"{Path(name).name.removesuffix('.json')}.json"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in shapes.glob("*.json")))
        raise NarratorError(f"no shape {name}: there is {known}; or give a model's config.json")
    return file


def empty_narrator(
    config: TrainConfig,
    feature_width: int,
    *,
    source: str | None = None,
    tokenizer: Any = None,
    positions: int = POSITIONS,
) -> Narrator:
    """The narrator that training with `config` begins with, on the meta device.

    source: folder, hub name or config.json of the language model (None: `config.model.backbone`). tokenizer:
    the backbone's own, which gets the added tokens; without one they are counted, a pad token included.
    """
    with torch.device("meta"):
        language_model: Any = empty_backbone(source or config.model.backbone).to(frozen_dtype(config))
        return with_parts(config, language_model, tokenizer, feature_width, positions).train()


def without_lora(narrator: Narrator, dtype: torch.dtype) -> Narrator:
    """A copy as narration has it: LoRA folded into the weights, everything in `dtype`."""
    merged = copy.deepcopy(narrator)
    if isinstance(merged.language_model, PeftModel):
        merged.language_model = merged.language_model.merge_and_unload()
    merge_projector_lora(merged.projector)
    return merged.to(dtype).eval().requires_grad_(False)


def parameter_counts(narrator: Narrator) -> dict[str, dict[str, int]]:
    """Of each of `PARTS`, and in total, how many parameters there are (`all`) and are trained (`trained`)."""
    base = narrator.base
    embeddings = {id(base.get_input_embeddings().weight), id(base.get_output_embeddings().weight)}
    counts = {part: {"all": 0, "trained": 0} for part in (*PARTS, "total")}
    for name, parameter in narrator.named_parameters():
        if "lora_" in name:
            part = "lora"
        elif name.startswith("projector."):
            part = "position_table" if name.startswith("projector.position.") else "projector"
        else:
            part = "embeddings" if id(parameter) in embeddings else "language_model"
        for group in (part, "total"):
            counts[group]["all"] += parameter.numel()
            counts[group]["trained"] += parameter.numel() * parameter.requires_grad
    return counts


def training_memory(
    narrator: Narrator, tokens: int, batch: int, precision: str, *, packed: bool = False
) -> dict[str, int]:
    """Bytes that a training step takes on one device: weights, gradients, optimizer, activations, total.

    tokens: of each of the `batch` samples of a micro-batch, or of one packed sequence. precision: of the
    arithmetic, fp32, bf16 or fp16; what is trained is float32. optimizer: AdamW's two moments and step
    counts. Nothing is sharded over devices.
    """
    trained = [parameter for parameter in narrator.parameters() if parameter.requires_grad]
    gradients = sum(parameter.nbytes for parameter in trained)
    sizes = {
        "weights": _weights(narrator),
        "gradients": gradients,
        "optimizer": 2 * gradients + 4 * len(trained),
        "activations": _peak(narrator, lambda model: _train_step(model, tokens, batch, precision, packed)),
    }
    return {**sizes, "total": sum(sizes.values())}


def narration_memory(narrator: Narrator, tokens: int, batch: int) -> dict[str, int]:
    """Bytes that writing takes: weights, kv_cache, activations, total.

    narrator: as narration has it (`without_lora`). tokens: of prompt and output together, the last of which
    is written; batch: prompts that are written at once.
    """
    caches: list[int] = []

    def write(model: Narrator) -> None:
        cache = DynamicCache(config=model.base.config)
        embeddings = model.base.get_input_embeddings()
        for length in (tokens - 1, 1):
            model.step(embeddings(torch.zeros(batch, length, dtype=torch.long)), cache)
        caches.append(cache_bytes(cache))

    with torch.inference_mode(False), torch.no_grad():
        peak = _peak(narrator, write)
    sizes = {"weights": _weights(narrator), "kv_cache": caches[0], "activations": peak - caches[0]}
    return {**sizes, "total": sum(sizes.values())}


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values in a `DynamicCache`."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _weights(narrator: Narrator) -> int:
    """Bytes of parameters (a tied one once) and buffers."""
    return sum(tensor.nbytes for tensor in (*narrator.parameters(), *narrator.buffers()))


def _train_step(narrator: Narrator, tokens: int, batch: int, precision: str, packed: bool = False) -> None:
    """`Narrator.forward` with a fixed share of visual and supervised tokens, then the backward."""
    base, visual, answers = narrator.base, int(VISUAL * tokens), math.ceil(SUPERVISED * tokens)
    width = narrator.projector.position.embedding_dim
    compute = AUTOCAST[precision]
    with torch.autocast("cpu", dtype=compute or torch.bfloat16, enabled=compute is not None):
        text = base.get_input_embeddings()(torch.zeros(batch, tokens, dtype=torch.long))
        places = torch.zeros(batch * visual, dtype=torch.long)
        seen = narrator.projector(torch.zeros(batch * visual, width), places).view(batch, visual, -1)
        layers = next(base.model.layers.parameters()).dtype
        embeddings = torch.cat([text[:, : tokens - visual].to(layers), seen.to(layers)], 1)
        if packed:
            how = {
                "attention_mask": torch.ones(1, 1, tokens, tokens, dtype=torch.bool),
                "position_ids": torch.arange(tokens)[None],
            }
        else:
            mask = torch.ones(batch, tokens, dtype=torch.long)
            mask[0, -1] = 0  # a batch has samples that are padded
            how = {"attention_mask": mask}
        hidden = base.model(inputs_embeds=embeddings, use_cache=False, **how).last_hidden_state
        del text, seen, embeddings
        logits = base.get_output_embeddings()(hidden[:, :answers].flatten(0, 1))
        targets = torch.zeros(batch * answers, dtype=torch.long)
        loss = functional.cross_entropy(logits.float(), targets, reduction="sum")
        del hidden, logits
    loss.backward()


def _peak(narrator: Narrator, run: Callable[[Narrator], None]) -> int:
    """The most bytes that are alive at a time of what `run` makes of a copy without contents."""
    contentless: AbstractContextManager[Any] = FakeTensorMode(allow_non_fake_inputs=True)
    model = copy.deepcopy(narrator)
    with contentless:
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        with LiveBytes() as live:
            run(model)
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make while it is active, and that are still alive.

    peak: the most at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _makes_storage(func):
            for tensor in [result] if isinstance(result, Tensor) else tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def drop(_: Any) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, drop)
        self.now += size
        self.peak = max(self.peak, self.now)


@cache
def _makes_storage(func: Any) -> bool:
    """Whether an operation's results are new, neither views of what it is given nor that itself."""
    return not any(given_back.alias_info for given_back in func._schema.returns)
