"""A training run in its folder: from settings and samples to a checkpoint, resumed where it was stopped."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from videonarrator.checkpoint import CheckpointInfo, backbone_source, save_checkpoint
from videonarrator.config import load_template
from videonarrator.dataset import ClipSamples, VisualSource
from videonarrator.environment import write_environment
from videonarrator.modeling.narrator import Narrator
from videonarrator.schema import NarratorError
from videonarrator.settings import TrainConfig
from videonarrator.training.batches import StepBatches
from videonarrator.training.building import (
    build_narrator,
    match_projector,
    optimizer_of,
    projector_lora,
    start_projector,
    token_rules,
)
from videonarrator.training.evaluation import Best, held_out_loss
from videonarrator.training.folder import claim, record_of, write_record
from videonarrator.training.forms import form_of, packing_holds
from videonarrator.training.loop import Loop
from videonarrator.training.parallel import Processes, telling_once
from videonarrator.training.progress import Progress, say_if, tensorboard_writer
from videonarrator.training.states import (
    DESCRIPTION,
    drop_old_states,
    last_state,
    read_state,
    updates,
    whole_states,
    write_state,
)

STATES, BEST = "states", "best"
"""Inside a run's folder: the resumable states; inside these: the best weights, `best-<step>`."""


@telling_once()
def train(
    config: TrainConfig,
    samples: Sequence[Mapping[str, Any]],
    visual_of: VisualSource,
    features: Mapping[str, Any],
    held_out: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Train a narrator and return its checkpoint folder, `<output>/checkpoint`.

    samples: per-clip samples (train_shots.json). visual_of: gives a clip's visual tokens. features: the
    settings these were made with, among them `width`; stored with the checkpoint. held_out: samples whose
    loss is measured; the checkpoint then has the weights with which it was lowest.
    A run with the same settings that was finished is returned as it is; one that was killed goes on from its
    last state. Raises `NarratorError` where the folder holds a run with other settings, or a loss is no
    number, or memory or disk space run out; states that were written are kept.
    """
    output = Path(config.output)
    checkpoint = output / "checkpoint"
    template = load_template(config.model.template)
    record = record_of(config, [list(samples), list(held_out)], features, template)
    processes = Processes(config.optimization.precision)
    if config.optimization.tensorboard:
        tensorboard_writer()  # is there one?
    if claim(output, config, record) and (checkpoint / "narrator.json").is_file():
        say_if(processes.first, f"{checkpoint} is already trained with these settings")
        return checkpoint
    torch.manual_seed(config.optimization.seed)
    width = int(features["width"])
    narrator, tokenizer = build_narrator(config, width)
    rules = token_rules(config, tokenizer)
    samples_of = partial(
        ClipSamples,
        visual_of=visual_of,
        tokenizer=tokenizer,
        template=template,
        width=width,
        later_clips=config.data.later_clips or rules.published,
        rules=rules,
        whole_video_tokens=config.data.clip_tokens if config.data.whole_videos else 0,
    )
    dataset = samples_of(samples)
    evaluated = samples_of(held_out) if held_out else None
    for one in filter(None, (dataset, evaluated)):
        _check_lengths(one, narrator, config)
    _start_projector(narrator, dataset, config)
    if processes.first:
        try:
            write_record(output, record)
            write_environment(output)
        except OSError as error:
            raise NarratorError(f"cannot write to {output}: {error.strerror or error}: make room") from error
    run = Run(config, narrator, dataset, evaluated, tokenizer.pad_token_id, processes)
    run.go_on()
    weights = run.final_weights()
    if processes.first:
        if processes.sharded:  # no process has the whole narrator: again as it began
            torch.manual_seed(config.optimization.seed)
            narrator, _ = build_narrator(config, width)
            _start_projector(narrator, dataset, config)
        read_state(weights, narrator)
        info = _info(config, record, features, rules.bos, rules.strip_around_added_tokens)
        save_checkpoint(checkpoint, narrator, tokenizer, template, info)
        shutil.rmtree(output / STATES, ignore_errors=True)
    processes.wait()
    return checkpoint


class Run:
    """The loop of a run with its states and evaluations.

    dataset: what is trained on; evaluated: held-out samples, or None.
    """

    def __init__(
        self,
        config: TrainConfig,
        narrator: Narrator,
        dataset: ClipSamples,
        evaluated: ClipSamples | None,
        pad_id: int,
        processes: Processes,
    ) -> None:
        settings = config.optimization
        self.config, self.settings, self.processes = config, settings, processes
        self.states = Path(config.output) / STATES
        self.model, self.optimizer = processes.prepare(
            narrator, partial(optimizer_of, config=config), settings.clip_norm
        )
        self.narrator = narrator
        say_if(
            processes.first and settings.attention == "flex" and processes.device.type != "cuda",
            "optimization.attention=flex needs a GPU for its backward pass: sdpa is taken",
        )
        packed = settings.packed and packing_holds(self.model, narrator, dataset, pad_id, processes)
        say_if(
            processes.first and settings.packed and not packed,
            "this language model does not take packed sequences (its attention does not follow the positions "
            "and the mask it is given): samples are padded to batches instead",
        )

        def batches(samples: ClipSamples, *, once: bool) -> StepBatches:
            form = form_of(settings, samples, pad_id, packed=packed, once=once)
            place = processes.index, processes.number
            return StepBatches(form, samples, narrator.patch_id, settings.loss_weighting, *place)

        self.held_out = None if evaluated is None else batches(evaluated, once=True)
        everything = batches(dataset, once=False)
        self.loop = Loop(
            self.model,
            self.optimizer,
            everything,
            processes,
            schedule=settings.schedule,
            warmup_steps=math.ceil(settings.warmup * len(everything)),
            clip_norm=settings.clip_norm,
            seed=settings.seed,
            workers=settings.workers,
        )
        self.best = Best(settings.patience)
        self.done = 0

    def go_on(self) -> None:
        """Train from the last state, or from the start."""
        state = last_state(self.states)
        if not self.processes.alike(int(state.name.rpartition("-")[2]) if state else 0):
            raise NarratorError(
                f"output={self.config.output} is not the same folder for all processes: several machines "
                "need one that they share"
            )
        if state:
            say_if(self.processes.first, f"going on from {state}")
            facts = read_state(state, self.narrator, self.optimizer)
            self.done, self.best = facts["step"], Best(**facts["best"])
            self.loop.losses = facts["losses"]
            if self.processes.accelerator.scaler is not None:
                self.processes.accelerator.scaler.load_state_dict(facts["scaler"])
        progress = Progress(
            Path(self.config.output),
            self.loop.steps,
            self.done,
            tensorboard=self.settings.tensorboard,
            writes=self.processes.first,
        )
        self.progress = progress
        try:
            if not self.best.enough:
                self.loop.run(
                    progress,
                    first=self.done,
                    log_steps=self.settings.log_steps,
                    after_step=self.after_step,
                )
        finally:
            progress.close()

    def after_step(self, done: int, stopping: bool) -> bool:
        """Evaluate and save where it is time; whether enough has been learnt."""
        self.done = done
        settings = self.settings
        last = done == self.loop.steps
        if self.held_out is not None and (done % settings.evaluate_steps == 0 or last):
            loss = held_out_loss(self.model, self.held_out, self.processes)
            better = self.best.is_better(loss, done)
            if better:
                self._write(self._best(done), with_optimizer=False)
            self.progress.evaluated(done, loss, better)
        enough = self.best.enough
        if enough and not last:
            without = f"{self.best.since} evaluations without a better one than that of step {self.best.step}"
            self.progress.stopped(done, without)
        if not last and (done % settings.save_steps == 0 or stopping or enough):
            self._write(self.states / f"step-{done:06d}", with_optimizer=True)
            if self.processes.first:
                drop_old_states(self.states, settings.keep_states)
                self._drop_old_best()
            self.progress.draw()
        return enough

    def final_weights(self) -> Path:
        """The state whose weights the checkpoint gets: the best, or the last."""
        if self.held_out is not None:
            say_if(
                self.processes.first,
                f"the best held-out loss, {self.best.loss:.3f}, is of step {self.best.step}",
            )
            return self._best(self.best.step)
        self._write(self.states / "final", with_optimizer=False)
        return self.states / "final"

    def _best(self, step: int) -> Path:
        return self.states / f"{BEST}-{step:06d}"

    def _drop_old_best(self) -> None:
        """Remove best weights that neither this run nor a state it may go on from has any more."""
        states = [json.loads((state / DESCRIPTION).read_text("utf-8")) for state in whole_states(self.states)]
        wanted = {self._best(facts["best"]["step"]) for facts in (*states, {"best": self.best.facts()})}
        for folder in set(self.states.glob(f"{BEST}-*")) - wanted:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, folder: Path, *, with_optimizer: bool) -> None:
        scaler = self.processes.accelerator.scaler
        facts = {
            "step": self.done,
            "best": self.best.facts(),
            "losses": self.loop.losses,
            "scaler": None if scaler is None else scaler.state_dict(),
            "updates": updates(self.narrator, self.optimizer),
        }
        optimizer = self.optimizer if with_optimizer else None
        write_state(folder, self.narrator, optimizer, facts, writes=self.processes.first)
        self.processes.wait()


def _start_projector(narrator: Narrator, dataset: ClipSamples, config: TrainConfig) -> None:
    match_projector(narrator, dataset)
    if config.model.projector:
        start_projector(narrator.projector, Path(config.model.projector))


def _info(
    config: TrainConfig, record: Mapping[str, Any], features: Mapping[str, Any], bos: bool, strip: bool
) -> CheckpointInfo:
    model = config.model
    frozen = model.adapter != "full"
    return CheckpointInfo(
        adapter=model.adapter,
        feature_width=int(features["width"]),
        backbone=model.backbone if frozen else "",
        backbone_fingerprint=record["backbone"] if frozen else "",
        backbone_source=backbone_source(model.backbone) if frozen else "",
        bos=bos,
        strip_around_added_tokens=strip,
        compat=model.compat,
        projector_lora=projector_lora(config),
        whole_video_tokens=config.data.clip_tokens if config.data.whole_videos else 0,
        features=dict(features),
    )


def _check_lengths(dataset: ClipSamples, narrator: Narrator, config: TrainConfig) -> None:
    limit = int(getattr(narrator.base.config, "max_position_embeddings", 0) or 0)
    for item in dataset.items:
        if limit and len(item["ids"]) > limit:
            raise NarratorError(
                f"{item['name']}, has {len(item['ids'])} tokens; the backbone takes {limit}: shorten its "
                "text or its clip"
            )
    settings = config.optimization
    branches = [one for video in dataset.trees for tree in video for one in tree.branches]
    for branch in branches if settings.packed else ():
        if branch.length > settings.tokens_per_sequence:
            raise NarratorError(
                f"{dataset.items[branch.sample]['name']}, has {branch.length} tokens; a sequence takes "
                f"{settings.tokens_per_sequence}: raise optimization.tokens_per_sequence"
            )
