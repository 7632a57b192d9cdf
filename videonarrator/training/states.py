"""Resumable states: trained weights and the optimizer's moments in safetensors, the rest in JSON.

A state is `states/step-<n>/`, written beside and renamed when it is whole. Its tensors are whole ones, so
that a run may go on with other processes than it began with. Random numbers need no state: each step draws
from its own seed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videonarrator.schema import NarratorError
from videonarrator.training.parallel import like, whole_tensor
from videonarrator.training.zero import MOMENTS, ZeroOptimizer

WEIGHTS = "weights"
DESCRIPTION = "state.json"


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def write_state(
    folder: Path, model: nn.Module, optimizer: Any, facts: Mapping[str, Any], *, writes: bool = True
) -> None:
    """Write a state as a whole or not at all. All processes call this; the one that `writes` does so.

    optimizer: None leaves its moments out (the best weights so far need none). Raises `NarratorError` where
    it cannot be written: what lay there before is as it was.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        if writes:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        for kind in (WEIGHTS, *(MOMENTS if optimizer is not None else ())):
            tensors = dict(_tensors(kind, model, optimizer))
            if writes:
                _check_room(partial, tensors)
                save_file(tensors, partial / f"{kind}.safetensors", metadata={"format": "pt"})
        if not writes:
            return
        (partial / DESCRIPTION).write_text(json.dumps(dict(facts)), "utf-8")
        for file in partial.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = last_state(folder.parent)
        raise NarratorError(
            f"cannot write the state {folder}: {error}. "
            + (f"The last one, {kept}, is whole" if kept else "There is none before it")
            + ": make room, and the same command goes on from there"
        ) from error


def _tensors(kind: str, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in trained(model).items():
        if kind == WEIGHTS:
            yield name, whole_tensor(parameter)
        elif _updates(optimizer, parameter):
            zero = isinstance(optimizer, ZeroOptimizer)
            moment = optimizer.moment(parameter, kind) if zero else optimizer.state[parameter][kind]
            yield name, whole_tensor(moment)


def _check_room(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    needed = sum(tensor.nbytes for tensor in tensors.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"No space left on device: {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")


def last_state(states: Path) -> Path | None:
    """The newest state in `states` that can be read."""
    return next(iter(reversed(whole_states(states))), None)


def whole_states(states: Path) -> list[Path]:
    """The states in `states` that can be read, by step."""
    found = [state for state in states.glob("step-*") if state.name.rpartition("-")[2].isdigit()]
    return [
        state for state in sorted(found, key=lambda s: int(s.name.rpartition("-")[2])) if _readable(state)
    ]


def _readable(state: Path) -> bool:
    try:
        json.loads((state / DESCRIPTION).read_text("utf-8"))
        for kind in (WEIGHTS, *MOMENTS):
            with safe_open(state / f"{kind}.safetensors", framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def drop_old_states(states: Path, keep: int) -> None:
    """Remove all but the newest `keep` states, and what a killed run left half written."""
    for state in whole_states(states)[:-keep]:
        shutil.rmtree(state, ignore_errors=True)
    for partial in states.glob("*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def read_state(folder: Path, model: nn.Module, optimizer: Any = None) -> dict[str, Any]:
    """Put a state's weights, and its moments where an optimizer is given, in place; its facts.

    Raises `NarratorError` where it is a state of another model.
    """
    facts = json.loads((folder / DESCRIPTION).read_text("utf-8"))
    own = trained(model)
    tensors = load_file(folder / f"{WEIGHTS}.safetensors")
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
        raise NarratorError(f"{folder} is a state of another model: remove it to start anew")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(like(tensors[name].to(parameter.dtype), parameter))
    if optimizer is None:
        return facts
    moments = {kind: load_file(folder / f"{kind}.safetensors") for kind in MOMENTS}
    _put_moments(
        optimizer,
        {
            parameter: {kind: moments[kind][name] for kind in MOMENTS}
            for name, parameter in own.items()
            if name in moments[MOMENTS[0]]
        },
        {own[name]: number for name, number in facts["updates"].items()},
    )
    return facts


def _put_moments(
    optimizer: Any,
    moments: Mapping[nn.Parameter, Mapping[str, Tensor]],
    numbers: Mapping[nn.Parameter, float],
) -> None:
    if isinstance(optimizer, ZeroOptimizer):
        optimizer.load(moments, numbers)
        return
    told = optimizer.state_dict()
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    places = {id(parameter): place for place, parameter in enumerate(order)}
    told["state"] = {
        places[id(parameter)]: {
            "step": torch.tensor(float(numbers[parameter])),
            **{kind: like(tensor, parameter) for kind, tensor in tensors.items()},
        }
        for parameter, tensors in moments.items()
    }
    optimizer.load_state_dict(told)


def updates(model: nn.Module, optimizer: Any) -> dict[str, float]:
    """How often each parameter has been updated (one that had no gradient in a step was not)."""
    numbers = {name: _updates(optimizer, parameter) for name, parameter in trained(model).items()}
    return {name: number for name, number in numbers.items() if number}


def _updates(optimizer: Any, parameter: nn.Parameter) -> float:
    if isinstance(optimizer, ZeroOptimizer):
        return optimizer.updates(parameter)
    state = optimizer.state.get(parameter)
    return float(state["step"]) if state else 0.0
