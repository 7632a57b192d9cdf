"""What `doctor` looks at: whether all that a narrator needs is there, whole, and fits together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from packaging.requirements import Requirement
from safetensors import SafetensorError, safe_open
from torch import nn

from data_process.feature_store import ClipStore
from data_process.files import read_json
from data_process.qformer import encoder_fingerprint
from videonarrator.checkpoint import (
    CheckpointInfo,
    compare_backbone,
    naming,
    read_info,
    recorded_backbone,
)
from videonarrator.config import load_template
from videonarrator.generation.prompts import stop_ids
from videonarrator.modeling.backbones import empty_backbone, load_tokenizer
from videonarrator.schema import NarratorError
from videonarrator.settings import TrainConfig
from videonarrator.timeline import POSITIONS
from videonarrator.training.building import token_rules
from videonarrator.weight_files import weight_shards

FEATURE_WIDTH = 768
"""Of a visual token, where no features are there to tell: BLIP-2's Q-Former."""


@dataclass(frozen=True)
class Check:
    """Whether something is whole. ok None: it could not be looked at, or need not be there yet."""

    check: str
    ok: bool | None
    found: str


class _Unknown(Exception):
    """Why a check cannot say yes or no."""


@dataclass(frozen=True)
class Subject:
    """What is looked at. backbone: folder, hub name or config.json; None where there is none to size by."""

    name: str
    config: TrainConfig
    backbone: str | None
    tokenizer: Any = None
    feature_width: int = FEATURE_WIDTH
    positions: int = POSITIONS


def check(name: str, look: Callable[[], str]) -> Check:
    """What `look` finds; a `NarratorError` is the reason why something is not whole."""
    try:
        return Check(name, True, look())
    except _Unknown as reason:
        return Check(name, None, str(reason))
    except (NarratorError, OSError) as error:
        return Check(name, False, str(error))


def look_at_config(name: str, config: TrainConfig, source: str | None, checks: list[Check]) -> Subject:
    """Look at what a training run needs; its checks are added to `checks`.

    source: a shape in place of the backbone, with which only the template is looked at: nothing need be there
    yet.
    """
    checks.append(check("template", lambda: load_template(config.model.template).language))
    if source is not None:
        return Subject(name, config, source)
    features: dict[str, Any] = {}

    def clips() -> str:
        store = ClipStore.open(config.data.clips)
        features.update(store.settings["features"])
        return f"{config.data.clips}, visual tokens of width {features['width']}"

    checks.append(check("samples", lambda: f"{len(_list(config.data.samples))} in {config.data.samples}"))
    checks.append(check("clips", clips))
    checks.append(check("encoder", lambda: _encoder(features)))
    folder, tokenizer = _look_at_backbone(config.model.backbone, checks, lambda: "")
    if tokenizer is not None:
        checks.append(check("bos", lambda: _bos(token_rules(config, tokenizer).bos, tokenizer)))
    return Subject(name, config, folder, tokenizer, int(features.get("width", FEATURE_WIDTH)))


def look_at_checkpoint(
    folder: Path, config: TrainConfig, source: str | None, moved: str | None, checks: list[Check]
) -> Subject:
    """Look at a checkpoint folder and what it refers to; its checks are added to `checks`.

    config: settings of which only `optimization` counts. source: a shape in place of the backbone; moved:
    where the backbone lies now.
    """
    found: list[CheckpointInfo] = []

    def files() -> str:
        found.append(read_info(folder))
        return "all there, as they were written"

    checks.append(check("checkpoint", files))
    if not found:
        return Subject(str(folder), config, None)
    info = found[0]
    compat = "upstream" if info.projector_lora else "none"  # of which only LoRA on the projector counts here
    model = replace(config.model, adapter=info.adapter, compat=compat, **_lora(folder, info))
    config = replace(config, model=model)
    checks.append(check("template", lambda: load_template(folder / "prompt.yaml").language))
    checks.append(check("encoder", lambda: _encoder(info.features)))
    tokenizer = _tokenizer(str(folder / "tokenizer"), checks)
    if tokenizer is not None:
        with safe_open(folder / "trained.safetensors", framework="pt") as trained:
            rows = trained.get_slice("embed_tokens.weight").get_shape()[0]
        checks.append(check("vocabulary", lambda: _vocabulary(tokenizer, rows)))
        checks.append(check("bos", lambda: _bos(info.bos, tokenizer)))
    if source is None:
        source = moved or recorded_backbone(folder, info)
        if info.adapter == "full":
            source = str(folder / "backbone")
        source, _ = _look_at_backbone(
            source, checks, lambda: compare_backbone(info, source or ""), own_tokenizer=False
        )
    return Subject(str(folder), config, source, tokenizer, info.feature_width, info.positions)


def _look_at_backbone(
    source: str, checks: list[Check], same: Callable[[], str], own_tokenizer: bool = True
) -> tuple[str | None, Any]:
    """The source if a model can be sized by it, and its tokenizer; their checks are added to `checks`.

    same: says what the backbone is compared with, and how that went.
    """
    models: list[Any] = []

    def look() -> str:
        try:
            with naming(source):
                models.append(empty_backbone(source))
        except NarratorError as error:
            raise NarratorError(
                f"{error}; say where it lies (model.backbone=..., for a checkpoint --backbone DIR), or let "
                "--shape baichuan-7b take its place"
            ) from error
        if not Path(source).is_dir():
            raise _Unknown(f"{source} is a name of the hub: its weights are fetched when it is first used")
        return "; ".join(filter(None, [_weights(Path(source), models[0]), same()]))

    checks.append(check("backbone", look))
    if not models:
        return None, None
    if not own_tokenizer:
        return source, None
    tokenizer = _tokenizer(source, checks)
    if tokenizer is not None:
        rows = models[0].get_input_embeddings().num_embeddings
        checks.append(check("vocabulary", lambda: _vocabulary(tokenizer, rows)))
    return source, tokenizer


def _weights(folder: Path, model: nn.Module) -> str:
    """Whether the files hold the model's weights whole, by their headers."""
    shapes: dict[str, list[int]] = {}
    shards = weight_shards(folder)
    for shard in shards:
        if shard.suffix != ".safetensors":
            raise NarratorError(f"{shard} is a pickled file, which no backbone is read from: convert it")
        try:
            with safe_open(shard, framework="pt") as stored:
                shapes |= {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise NarratorError(f"{shard} is cut short or no safetensors ({error}): get it again") from error
    own = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    if missing := sorted(own.keys() - shapes.keys()):
        raise NarratorError(f"{folder} lacks {len(missing)} of the weights, first {', '.join(missing[:3])}")
    if wrong := sorted(name for name, shape in own.items() if shapes[name] != shape):
        name = wrong[0]
        raise NarratorError(
            f"{folder}: {name} is {shapes[name]}, config.json says {own[name]} ({len(wrong)} such weights)"
        )
    return f"{folder}, {len(own)} weights in {len(shards)} files"


def _tokenizer(source: str, checks: list[Check]) -> Any:
    """The tokenizer, None where it cannot be loaded; adds a check of it."""
    loaded: list[Any] = []

    def look() -> str:
        with naming(source):
            loaded.append(load_tokenizer(source))
        newline = stop_ids(loaded[0])[0]  # an error where the line break is not one piece
        return f"{len(loaded[0])} pieces, line break {newline}"

    checks.append(check("tokenizer", look))
    return loaded[0] if loaded else None


def _vocabulary(tokenizer: Any, rows: int) -> str:
    if len(tokenizer) > rows:
        raise NarratorError(
            f"the tokenizer has {len(tokenizer)} pieces, the model embeddings for {rows}: one of the two is "
            "another model's"
        )
    return f"{len(tokenizer)} pieces, {rows} embeddings"


def _bos(wanted: bool, tokenizer: Any) -> str:
    if wanted and tokenizer.bos_token_id is None:
        raise NarratorError("prompts are to begin with BOS, and the tokenizer has none: model.bos=false")
    return f"prompts begin with {tokenizer.bos_token}" if wanted else "prompts begin without"


def _encoder(features: Mapping[str, Any]) -> str:
    source, known = features.get("encoder"), features.get("encoder_sha256")
    if not source:
        raise _Unknown("not told with which encoder the features were made")
    if not Path(source).is_dir():
        try:
            source = snapshot_download(source, local_files_only=True)
        except (LocalEntryNotFoundError, HFValidationError):
            raise _Unknown(
                f"{source} is not on this machine: `narrate` and `extract` need it (--encoder)"
            ) from None
    if known and encoder_fingerprint(source) != known:
        raise NarratorError(
            f"{source} is not the encoder the features were made with (its files differ): give the right one "
            "with --encoder"
        )
    return str(source)


def _list(file: str) -> list[Any]:
    samples = read_json(Path(file))
    if not isinstance(samples, list):
        raise NarratorError(f"{file} is no sample list: expected the JSON array train_shots.json")
    return samples


def _lora(folder: Path, info: CheckpointInfo) -> dict[str, Any]:
    if info.adapter != "lora":
        return {}
    told = json.loads((folder / "adapter" / "adapter_config.json").read_text("utf-8"))
    return {"rank": told["r"], "alpha": told["lora_alpha"], "dropout": told["lora_dropout"]}


def installed_packages() -> str:
    """Whether the packages the project requires are there, in versions that fit."""
    try:
        wanted = [Requirement(line) for line in requires("videonarrator") or ()]
    except PackageNotFoundError:
        raise _Unknown("videonarrator is not installed (it runs from its folder)") from None
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = []
    for one in wanted:
        try:
            found = version(one.name)
        except PackageNotFoundError:
            wrong.append(f"{one.name} is missing (wanted {one.specifier})")
            continue
        if not one.specifier.contains(found, prereleases=True):
            wrong.append(f"{one.name} is {found} (wanted {one.specifier})")
    if wrong:
        raise NarratorError(f"{'; '.join(wrong)}: run bash scripts/setup_env.sh")
    return f"{len(wanted)}, all in versions that fit"
