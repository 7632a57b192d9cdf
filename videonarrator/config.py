"""Settings: dataclasses with one home for each default, and the files and words that change them.

Dataclass defaults < YAML file < `key=value` overrides. A YAML file holds only what differs. Relative paths in
YAML files and overrides are relative to the current folder, not to the file that names them; the dataclasses
hold paths as `str`. Settings stop at the builders: classes and functions elsewhere take plain arguments.
No torch.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal, TypeVar, Union

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from videonarrator.length import DEFAULT_RATE
from videonarrator.prompt import Template
from videonarrator.schema import NarratorError

__all__ = [
    "MISSING",
    "CutConfig",
    "config_path",
    "load_config",
    "load_template",
    "save_config",
    "save_template",
]

Settings = TypeVar("Settings")

# -------------------- the settings


@dataclass(frozen=True)
class CutConfig:
    """How a video is cut into clips. `threshold` None: the detector's own; durations in seconds."""

    detector: Literal["adaptive", "content"] = "adaptive"
    threshold: float | None = None
    min_seconds: float = 1.0
    max_seconds: float = 15.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_seconds <= self.max_seconds:
            raise NarratorError(
                f"min_seconds={self.min_seconds:g} and max_seconds={self.max_seconds:g}: "
                "expected 0 <= min_seconds <= max_seconds"
            )


# -------------------- reading and writing


def load_config(
    schema: type[Settings], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> Settings:
    """An instance of the dataclass `schema`: its defaults, then the YAML file, then `key=value` overrides.

    path: a file, or the name of one in configs/ (see `config_path`); None takes the defaults.
    overrides: `name=value` or `group.name=value`, the value written as in YAML; later ones win.
    Raises `NarratorError` for an unknown key, a value of the wrong type, or MISSING values not given.
    """
    config = OmegaConf.structured(schema)
    source = "the settings"
    if path is not None:
        file = config_path(path)
        source = str(file)
        for key, hint, value in _leaves(schema, _read_settings(file), source):
            config = _set(config, key, hint, value, source)
    for override in overrides:
        for key, hint, value in _leaves(schema, _parse_override(override), override):
            if _is_text(hint) and not isinstance(value, str) and (value is not None or hint is str):
                value = override.partition("=")[2]  # text as it was typed: name=007 is no number
            config = _set(config, key, hint, value, override)
    try:
        if missing := sorted(OmegaConf.missing_keys(config)):
            words = " ".join(f"{key}=..." for key in missing)
            raise NarratorError(
                f"{source}: no value for {', '.join(missing)}; add to the YAML file or type {words}"
            )
        return typing.cast(Settings, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        raise NarratorError(f"{source}: {_first_line(error)}") from error


def save_config(config: Any, path: str | Path) -> None:
    """Write a settings dataclass with all its values as YAML; `load_config` reads it back equal."""
    _write(Path(path), OmegaConf.to_yaml(OmegaConf.structured(config)))


def config_path(name: str | Path) -> Path:
    """The YAML file meant by `name`: a path that exists, else one in configs/ (`sample/train` will do)."""
    if Path(name).is_file():
        return Path(name)
    configs = configs_folder()
    wanted = Path(name).as_posix().removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    if not Path(name).is_absolute() and (configs / wanted).is_file():
        return configs / wanted
    files = sorted(file.relative_to(configs) for file in configs.rglob("*.yaml"))
    known = [file.as_posix() for file in files if file.parts[0] != "accelerate"]  # those are accelerate's own
    raise NarratorError(f"no file {name}{_nearest(wanted, known)}; configs/ has {', '.join(known)}")


# -------------------- prompt templates

_PLACEHOLDERS = {
    "product": ("name", "info"),
    "header": ("i", "n"),
    "length": ("low", "high"),
    "narration": ("i",),
}
"""What each wording of a template is filled in with; the other fields are taken as they stand."""

_OPTIONAL = {"header": ("n",)}
"""Placeholders that a wording may leave out."""


def load_template(name: str | Path) -> Template:
    """The prompt template in a file, or the one of that name in configs/prompts (`zh`).

    Raises `NarratorError` where a field is absent, unknown or no text, or has not the right placeholders.
    """
    file = Path(name)
    if not file.is_file():
        inside = Path(name).as_posix().removeprefix("configs/").removeprefix("prompts/")
        file = config_path(file if file.is_absolute() else f"prompts/{inside}")
    try:
        values = yaml.safe_load(_read_text(file))
    except yaml.YAMLError as error:
        raise NarratorError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise NarratorError(f"{file} is not a prompt template: expected lines of the form field: text")
    names = [field.name for field in fields(Template)]
    for key in values:
        if key not in names:
            raise NarratorError(f"{file}: unknown field {key!r}{_nearest(str(key), names)}")
    if absent := [name for name in names if name not in values]:
        raise NarratorError(f'{file}: no field {", ".join(absent)}; an empty text is written ""')
    for key, value in values.items():
        if not isinstance(value, str):
            raise NarratorError(f"{file}: {key} is {value!r}, expected text; put it in quotes")
        _check_placeholders(file, key, value)
    if values["language"] not in DEFAULT_RATE:
        raise NarratorError(
            f"{file}: language {values['language']!r} is unknown; there are {', '.join(DEFAULT_RATE)}"
        )
    if values["language"] == "en" and values["narration"] != values["narration"].rstrip(" "):
        raise NarratorError(
            f"{file}: narration {values['narration']!r} ends in a blank: leave it out, in English the "
            "blank before a narration is put there by itself"
        )
    return Template(**values)


def save_template(template: Template, path: str | Path) -> None:
    """Write a template as YAML; `load_template` gives it back unchanged, line breaks included."""
    lines = [
        yaml.safe_dump({key: value}, allow_unicode=True, default_style='"', width=float("inf"))
        for key, value in asdict(template).items()
    ]
    _write(Path(path), "".join(lines))


def _check_placeholders(file: Path, field: str, wording: str) -> None:
    """Each placeholder of a wording must stand in it once, plainly: it is both filled in and read back.

    A product wording may be empty: the prompt then tells of no product.
    """
    if field == "product" and not wording:
        return
    wanted, optional = _PLACEHOLDERS.get(field, ()), _OPTIONAL.get(field, ())
    if not wanted:
        known = {name for names in _PLACEHOLDERS.values() for name in names}
        if found := [name for name in re.findall(r"\{(\w+)\}", wording) if name in known]:
            raise NarratorError(f"{file}: {field} is taken as it stands, it cannot hold {{{found[0]}}}")
        return
    expected = " and ".join(
        f"{{{name}}}" + (" (which may be left out)" if name in optional else "") for name in wanted
    )
    or_empty = ", or be empty" if field == "product" else ""
    try:
        parts = list(Formatter().parse(wording))
    except ValueError as error:
        raise NarratorError(f"{file}: {field}: {error}; expected {expected} and no other braces") from error
    plain = "".join(text + (f"{{{name}}}" if name is not None else "") for text, name, _, _ in parts)
    found = [name for _, name, _, _ in parts if name is not None]
    needed = [name for name in wanted if name not in optional or name in found]
    if plain != wording or sorted(found) != sorted(needed):
        raise NarratorError(
            f"{file}: {field} must hold {expected} once and no other braces{or_empty}: {wording!r}"
        )


# -------------------- details


def configs_folder() -> Path:
    """configs/: inside the package where installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(
        (folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()),
        package / "configs",
    )


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NarratorError(f"cannot read {file}: {error}") from error


def _read_settings(file: Path) -> dict[Any, Any]:
    try:
        # OmegaConf's reader, unlike PyYAML's, takes 1e-4 for a number and refuses a key that stands twice
        values = OmegaConf.to_container(OmegaConf.create(_read_text(file)), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise NarratorError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise NarratorError(f"{file} holds no settings: expected lines of the form key: value")
    return values


def _parse_override(override: str) -> dict[Any, Any]:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise NarratorError(f"{override!r} is not a setting: type key=value or group.key=value")
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise NarratorError(f"{override!r}: the value is not valid YAML: {_first_line(error)}") from error
    values = typing.cast(dict[Any, Any], parsed)["value"]
    for part in reversed(key.strip().split(".")):
        values = {part: values}
    return values


def _leaves(
    schema: type, values: Mapping[Any, Any], source: str, prefix: str = "", root: type | None = None
) -> Iterator[tuple[str, Any, Any]]:
    """The values as (dotted key, type hint, value), walked along the dataclass; unknown keys are errors."""
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        if key not in hints:
            elsewhere = [full for full in _all_keys(root or schema) if full.rpartition(".")[2] == key]
            guess = f" (did you mean {elsewhere[0]}?)" if elsewhere else _nearest(str(key), hints, prefix)
            known = ", ".join(prefix + name for name in hints)
            raise NarratorError(f"{source}: unknown setting {prefix}{key}{guess}; there are {known}")
        group = _group(hints[key])
        if group and isinstance(value, Mapping):
            yield from _leaves(group, value, source, f"{prefix}{key}.", root or schema)
        else:
            yield prefix + key, hints[key], value


def _set(config: Any, key: str, hint: Any, value: Any, source: str) -> Any:
    """`config` with one value changed, its type checked."""
    wrong = f"{source}: {key} is {value!r}, expected {_describe(hint)}"
    if _is_text(hint) and not isinstance(value, str | None):
        raise NarratorError(f"{wrong}; put it in quotes")
    nested = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    try:
        return OmegaConf.merge(config, nested)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise NarratorError(wrong) from error


def _group(hint: Any) -> type | None:
    """The dataclass that a type hint stands for, if it does."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)), None)


def _all_keys(schema: type, prefix: str = "") -> Iterator[str]:
    for name, hint in typing.get_type_hints(schema).items():
        yield prefix + name
        if group := _group(hint):
            yield from _all_keys(group, f"{prefix}{name}.")


def _is_text(hint: Any) -> bool:
    return hint is str or hint == str | None


def _describe(hint: Any) -> str:
    """A type hint in words."""
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_describe, arguments))
    if origin in (list, tuple):
        return f"a list ({', '.join('...' if a is ... else _describe(a) for a in arguments)})"
    if is_dataclass(hint):
        return f"a group of settings ({', '.join(field.name for field in fields(hint))})"
    return words.get(hint) or (hint.__name__ if isinstance(hint, type) else str(hint))


def _nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _write(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all, its folder made if need be."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise NarratorError(f"cannot write {path}: {error}") from error
