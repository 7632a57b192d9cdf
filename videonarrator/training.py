"""Training: samples of clips or whole videos, LoRA or all weights, over transformers' Trainer."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from videonarrator.checkpoint import CheckpointInfo, backbone_source, naming, save_checkpoint
from videonarrator.clip_inputs import TokenRules
from videonarrator.config import load_template, save_config
from videonarrator.dataset import ClipSamples, VisualSource, collate
from videonarrator.environment import write_environment
from videonarrator.fingerprint import fingerprint
from videonarrator.modeling.backbones import add_tokens, begins_with_bos, load_backbone, load_tokenizer
from videonarrator.modeling.lora import add_lora, add_projector_lora, set_trainable
from videonarrator.modeling.narrator import Narrator
from videonarrator.modeling.projector import VisualProjector
from videonarrator.prompt import ADDED_TOKENS, VISUAL_PATCH, Template
from videonarrator.schema import NarratorError
from videonarrator.settings import OptimizationSettings, TrainConfig

STATES, RECORD = "states", "run.json"
"""Inside a training run's folder: the resumable states, and what the run depends on."""


def train(
    config: TrainConfig,
    samples: Sequence[Mapping[str, Any]],
    visual_of: VisualSource,
    features: Mapping[str, Any],
) -> Path:
    """Train a narrator and return its checkpoint folder, `<output>/checkpoint`.

    samples: per-clip samples (train_shots.json). visual_of: gives a clip's visual tokens. features: the
    settings these were made with, among them `width`; stored with the checkpoint.
    A run with the same settings that was finished is returned as it is; one that was killed goes on from its
    last state. Raises `NarratorError` where the folder holds a run with other settings.
    """
    output = Path(config.output)
    checkpoint = output / "checkpoint"
    settings = config.optimization
    template = load_template(config.model.template)
    record = _record(config, samples, features, template)
    if _claim(output, config, record) and (checkpoint / "narrator.json").is_file():
        _say(f"{checkpoint} is already trained with these settings")
        return checkpoint
    torch.manual_seed(settings.seed)
    narrator, tokenizer = build_narrator(config, int(features["width"]))
    rules = token_rules(config, tokenizer)
    whole_video_tokens = config.data.clip_tokens if config.data.whole_videos else 0
    dataset = ClipSamples(
        samples,
        visual_of,
        tokenizer,
        template,
        int(features["width"]),
        later_clips=config.data.later_clips or rules.published,
        rules=rules,
        whole_video_tokens=whole_video_tokens,
    )
    _check_lengths(dataset, narrator)
    match_projector(narrator, dataset)
    if config.model.projector:
        start_projector(narrator.projector, Path(config.model.projector))
    trainer = NarratorTrainer(
        model=narrator,
        args=training_arguments(settings, output / STATES),
        train_dataset=dataset,
        data_collator=partial(collate, pad_id=tokenizer.pad_token_id),
        callbacks=[Progress(output / "train_log.jsonl")],
    )
    trainer.projector_rate = settings.projector_learning_rate
    trainer.remove_callback(PrinterCallback)
    if trainer.is_world_process_zero():
        _write_record(output, record)
        write_environment(output)
    state = last_state(output / STATES)
    if state:
        _say(f"going on from {state}")
    trainer.train(resume_from_checkpoint=str(state) if state else None)
    model = config.model
    frozen = model.adapter != "full"
    info = CheckpointInfo(
        adapter=model.adapter,
        feature_width=int(features["width"]),
        backbone=model.backbone if frozen else "",
        backbone_fingerprint=record["backbone"] if frozen else "",
        backbone_source=backbone_source(model.backbone) if frozen else "",
        bos=rules.bos,
        strip_around_added_tokens=rules.strip_around_added_tokens,
        compat=model.compat,
        projector_lora=projector_lora(config),
        whole_video_tokens=whole_video_tokens,
        features=dict(features),
    )
    if trainer.is_world_process_zero():
        save_checkpoint(checkpoint, narrator, tokenizer, template, info)
        shutil.rmtree(output / STATES, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return checkpoint


def build_narrator(config: TrainConfig, feature_width: int) -> tuple[Narrator, Any]:
    """The model as training begins with it, and its tokenizer with the added tokens."""
    with naming(config.model.backbone):
        tokenizer = load_tokenizer(config.model.backbone)
        language_model: Any = load_backbone(config.model.backbone)
    add_tokens(language_model, tokenizer, ADDED_TOKENS)
    if config.optimization.gradient_checkpointing:
        language_model.gradient_checkpointing_enable({"use_reentrant": False})
    projector = VisualProjector(feature_width, language_model.get_input_embeddings().embedding_dim)
    model = config.model
    if model.adapter == "lora":
        language_model = add_lora(language_model, rank=model.rank, alpha=model.alpha, dropout=model.dropout)
    if settings := projector_lora(config):
        add_projector_lora(projector, **settings)
    narrator = Narrator(language_model, projector, tokenizer.convert_tokens_to_ids(VISUAL_PATCH))
    set_trainable(narrator, model.adapter)
    return narrator, tokenizer


def token_rules(config: TrainConfig, tokenizer: Any) -> TokenRules:
    """The settings' token rules; whether prompts begin with BOS is found out where they do not say."""
    model = config.model
    published = model.compat == "upstream"
    bos = begins_with_bos(tokenizer) if model.bos is None else model.bos
    return TokenRules(bos, model.strip_around_added_tokens or published, published)


def projector_lora(config: TrainConfig) -> dict[str, Any]:
    """Settings of the projector's LoRA: the published set-up has one; ours trains the projector itself."""
    model = config.model
    if model.compat != "upstream" or model.adapter != "lora":
        return {}
    return {"rank": model.rank, "alpha": model.alpha, "dropout": model.dropout}


def match_projector(narrator: Narrator, dataset: ClipSamples) -> None:
    """Start the projector at the scale of the words, measured on the first sample that shows something."""
    seen = next((one["visual"] for one in dataset if len(one["visual"])), None)  # pyright: ignore
    if seen is None:
        raise NarratorError(
            "no sample of the list shows its clip: there is nothing to train the projector on"
        )
    narrator.projector.match_scale(narrator.base.get_input_embeddings().weight, seen)


def start_projector(projector: VisualProjector, folder: Path) -> None:
    """Start the projector from a BLIP-2's `language_projection`; half its bias, since ours enters twice."""
    names = ("language_projection.weight", "language_projection.bias")
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            tensors |= {name: stored.get_tensor(name).float() for name in names if name in stored.keys()}  # noqa: SIM118
    shape = projector.linear.weight.shape
    if set(tensors) != set(names) or tensors[names[0]].shape != shape:
        found = {name: list(tensor.shape) for name, tensor in tensors.items()} or "none"
        raise NarratorError(
            f"model.projector={folder}: expected a BLIP-2 folder with a language_projection of "
            f'{list(shape)}, found {found}; give another, or model.projector="" to start at random'
        )
    with torch.no_grad():
        projector.linear.weight.copy_(tensors[names[0]])
        projector.linear.bias.copy_(tensors[names[1]] / 2)


def training_arguments(settings: OptimizationSettings, states: Path) -> TrainingArguments:
    """Our settings in transformers' words."""
    return TrainingArguments(
        output_dir=str(states),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,  # a share of all steps, being less than 1
        max_grad_norm=settings.clip_norm,
        weight_decay=settings.weight_decay,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        seed=settings.seed,
        logging_steps=settings.log_steps,
        save_steps=settings.save_steps,
        save_total_limit=settings.keep_states,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"dispatch_batches": False},
    )


class NarratorTrainer(Trainer):
    """Trainer that saves and resumes only what is trained, and may give the projector a rate of its own."""

    projector_rate: float | None = None

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        assert self.model is not None
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.projector_rate is None or self.optimizer is not None:
            return super().create_optimizer(model)
        trained = self._trained()
        groups = [
            {
                "params": [p for n, p in trained if not n.startswith("projector.")],
                "lr": self.args.learning_rate,
            },
            {"params": [p for n, p in trained if n.startswith("projector.")], "lr": self.projector_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=self.args.weight_decay)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        assert isinstance(self.train_dataset, ClipSamples)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return EpochSampler(size, self.train_dataset.lengths, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name: p.detach().cpu().contiguous() for name, p in self._trained()}
        save_file(trained, folder / "model.safetensors", metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        tensors = load_file(Path(resume_from_checkpoint) / "model.safetensors")
        own = dict(self._trained())
        if set(own) != set(tensors):
            raise NarratorError(
                f"{resume_from_checkpoint} is a state of another model: remove it to start anew"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])


class EpochSampler(LengthGroupedSampler):
    """Samples of like length together, in an order that depends on seed and epoch only: it can be resumed."""

    def __init__(self, size: int, lengths: list[int], seed: int) -> None:
        self.draw = torch.Generator()
        super().__init__(size, lengths=lengths, generator=self.draw)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        self.draw.manual_seed(self.seed + self.epoch)
        return super().__iter__()


class Progress(TrainerCallback):
    """Appends what is logged to train_log.jsonl and tells it on stderr, with the time left.

    Lines of steps that a resumed run takes again are dropped first.
    """

    def __init__(self, log: Path) -> None:
        self.log, self.began, self.first = log, 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began, self.first = time.monotonic(), state.global_step
        if not state.is_world_process_zero:
            return
        lines = self.log.read_text("utf-8").splitlines(keepends=True) if self.log.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.first]
        self.log.write_text("".join(kept), "utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")
        done = state.global_step - self.first
        if "loss" in (logs or {}) and done:
            left = (time.monotonic() - self.began) / done * (state.max_steps - state.global_step)
            loss = float(logs["loss"])
            _say(f"step {state.global_step}/{state.max_steps}  loss {loss:.3f}  {left:.0f} s left")


def last_state(states: Path) -> Path | None:
    """The newest whole state in `states`: of a state, transformers writes trainer_state.json last."""
    found = sorted(states.glob("checkpoint-*"), key=lambda state: int(state.name.rpartition("-")[2]))
    for state in reversed(found):
        try:
            json.loads((state / "trainer_state.json").read_text("utf-8"))
        except (OSError, ValueError):  # the run was killed while it wrote this one
            continue
        return state
    return None


def _record(
    config: TrainConfig, samples: Any, features: Mapping[str, Any], template: Template
) -> dict[str, Any]:
    """What a run depends on. A backbone from the hub is known by its name alone."""
    backbone = Path(config.model.backbone)
    if backbone.is_dir() and not (backbone / "config.json").is_file():
        raise NarratorError(f"{backbone} is no language model: it has no config.json")
    told = json.dumps([list(samples), asdict(template)], ensure_ascii=False, sort_keys=True)
    return {
        "settings": repr(config),
        "samples": hashlib.sha256(told.encode()).hexdigest(),
        "features": json.loads(json.dumps(dict(features))),
        "backbone": fingerprint(backbone) if backbone.is_dir() else "",
    }


def _claim(output: Path, config: TrainConfig, record: Mapping[str, Any]) -> bool:
    """Whether the folder holds this very run; else it is made ready. Another run's folder is refused."""
    try:
        if (output / RECORD).is_file():
            if json.loads((output / RECORD).read_text("utf-8")) != record:
                raise NarratorError(
                    f"{output} holds a training run with other settings or data: give another output=..., or "
                    f"remove it (rm -r {output})"
                )
            return True
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NarratorError(f"cannot write to {output}: {error}") from error
    save_config(config, output / "config.yaml")
    return False


def _write_record(output: Path, record: Mapping[str, Any]) -> None:
    """Make the folder this run's own, once all that could be wrong with it has been tried."""
    partial = output / f"{RECORD}.partial"
    partial.write_text(json.dumps(record, ensure_ascii=False), "utf-8")
    os.replace(partial, output / RECORD)


def _check_lengths(dataset: ClipSamples, narrator: Narrator) -> None:
    limit = int(getattr(narrator.base.config, "max_position_embeddings", 0) or 0)
    for item, length in zip(dataset.items, dataset.lengths, strict=True):
        if limit and length > limit:
            raise NarratorError(
                f"sample of video {item['id']}, clip {item['clip'] + 1}, has {length} tokens; the backbone "
                f"takes {limit}: shorten its text or its clip"
            )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
