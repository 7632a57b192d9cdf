"""A user's product file: YAML with the product's name and its knowledge points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from data_process.files import read_text
from videonarrator.schema import NarratorError, Product

EXAMPLE = "name: 云汀保温杯\ninfo:\n  材质: [不锈钢, 双层真空]\n  功效: [全天保温]"


def read_product(path: str | Path) -> Product:
    """The product of a YAML file with `name` and `info`.

    `info` is a text of lines `category：point、point`, or a mapping from category to one point or a list of
    points. Raises `NarratorError` with an example where the file is anything else.
    """
    path = Path(path)
    try:
        described: Any = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise NarratorError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(described, dict) or described.get("name") in (None, ""):
        raise _mistake(path, "it has no name")
    unknown = sorted(set(map(str, described)) - {"name", "info"})
    if unknown:
        raise _mistake(path, f"unknown field {unknown[0]!r}, there are name and info")
    name, info = described["name"], described.get("info") or ""
    if isinstance(name, dict | list | bool) or not str(name).strip():
        raise _mistake(path, f"name is {name!r}, expected text")
    name = str(name).strip()
    if "\n" in name:
        raise _mistake(path, "the name has a line break")
    if isinstance(info, dict):
        info = "\n".join(
            f"{category}：{_points(path, category, points)}" for category, points in info.items()
        )
    if not isinstance(info, str):
        raise _mistake(path, f"info is {info!r}, expected text or a mapping from category to points")
    return Product(name, "\n".join(line.strip() for line in info.splitlines() if line.strip()))


def _points(path: Path, category: Any, points: Any) -> str:
    listed = points if isinstance(points, list) else [points]
    wrong = any(point is None or isinstance(point, dict | list | bool) for point in listed)
    if wrong or not listed or any("\n" in str(point) for point in listed):
        raise _mistake(path, f"info, {category}: expected a point or a list of points, got {points!r}")
    return "、".join(str(point).strip() for point in listed)


def _mistake(path: Path, what: str) -> NarratorError:
    return NarratorError(f"{path} is no product file: {what}. Such a file looks like this:\n{EXAMPLE}")
