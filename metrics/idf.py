"""Knowledge points of products: reading an idf file, building one from annotations, cutting a point.

The file is a JSON object: product -> {knowledge point: weight}, in an order that counts; the first point is
the product's name itself. The metrics use the points only: with one nearest point per text a weight
multiplies and divides the same value (metrics.knowledge), so a weight of any size, 0 included, changes
nothing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metrics.entries import read_object
from videonarrator.schema import NarratorError, Product


def product_key(p_name: str) -> str:
    """An idf file's key for a product name of the annotations: the name without its 【...】.

    That is what follows the first 】, up to a second one (as published); a name without 】 as it is.
    """
    return p_name.split("】")[1] if "】" in p_name else p_name


def cut_point(point: str, language: str = "zh") -> str:
    """A knowledge point as the metrics compare it: what follows 】, in Chinese then cut at its first blank.

    May be empty (a point that begins with a blank).
    """
    return product_key(point).split(" ")[0] if language == "zh" else product_key(point)


def read_idf(path: str | Path) -> dict[str, list[str]]:
    """Product -> its knowledge points in file order, the product's name first.

    Raises `NarratorError` on anything that is no idf file: it names the product, and the point where there is
    one. The weights must be finite numbers; they are not returned (they have no effect).
    """
    path = Path(path)
    content = read_object(path, "idf file")
    if content.repeated:
        raise NarratorError(f"idf file {path}: product {content.repeated[0]!r} stands in it more than once")
    points: dict[str, list[str]] = {}
    for product, weights in content.items():
        where = f"idf file {path}: product {product!r}"
        if not isinstance(weights, dict):
            raise NarratorError(
                f"{where}: expected an object {{knowledge point: weight}}, found a {type(weights).__name__}"
            )
        if next(iter(weights), None) != product:
            found = f"is {next(iter(weights))!r}" if weights else "is missing"
            raise NarratorError(f"{where}: its first point must be the product's name itself, but {found}")
        for point, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) < math.inf:
                raise NarratorError(f"{where}, point {point!r}: weight {weight!r:.40} is not a finite number")
        points[product] = list(weights)
    return points


def product_points(products: Iterable[Product]) -> dict[str, list[str]]:
    """What `read_idf` would return for a file built from these products: all that the metrics need.

    A product's points are its name and those of its information, category by category, each once; products of
    one name are united.
    """
    points: dict[str, dict[str, None]] = {}
    for product in products:
        known = points.setdefault(product_key(product.name), {product_key(product.name): None})
        known.update(dict.fromkeys(point for listed in product.points.values() for point in listed))
    return {name: list(known) for name, known in points.items()}


def build_idf(annotations: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Product -> {knowledge point: weight} from an annotation file's content, as `read_idf` reads it.

    annotations: video -> {"p_name", "p_info", "frames": [{"new_text"}, ...]}. The points are the product's
    name and those of `p_info` (category by category, each point once; videos of one product are united), the
    weights ln((videos + 1) / (df + 1)), where df counts the videos with a clip whose narration contains the
    point. This gives the published file's keys, order and weights (metrics fixture). Raises `NarratorError`
    where there is no video, or one without a product name or a list of clips.
    """
    if not annotations:
        raise NarratorError("annotations: no video in them to build an idf file from")
    points = product_points(_product(video, content) for video, content in annotations.items())
    df = _document_frequencies({point for listed in points.values() for point in listed}, annotations)
    return {
        product: {point: math.log((len(annotations) + 1) / (df[point] + 1)) for point in listed}
        for product, listed in points.items()
    }


def _product(video: str, content: Any) -> Product:
    """A video's product; raises `NarratorError` where `content` is not what `build_idf` needs."""
    where = f"annotations: video {video!r}"
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise NarratorError(f'{where} has no list of clips under "frames"')
    for clip in content["frames"]:
        if not isinstance(clip, dict) or not isinstance(clip.get("new_text") or "", str):
            raise NarratorError(f'{where}: a clip under "frames" is no object, or its "new_text" no text')
    name, info = content.get("p_name"), content.get("p_info") or ""
    if not isinstance(name, str) or not product_key(name).strip() or not isinstance(info, str):
        raise NarratorError(
            f"{where} needs its product's name (besides a 【...】) and information as text; "
            f'"p_name" is {name!r:.60}, "p_info" is {info!r:.60}'
        )
    return Product(name, info)


def _document_frequencies(points: set[str], annotations: Mapping[str, Any]) -> Counter[str]:
    """Of each point the number of videos that say it, inside a longer word too."""
    by_start: dict[str, list[str]] = {}
    for point in points:
        by_start.setdefault(point[:2], []).append(point)
    df: Counter[str] = Counter()
    for content in annotations.values():
        said: set[str] = set()
        for clip in content["frames"]:
            text = clip.get("new_text") or ""
            for i, first in enumerate(text):
                near = (*by_start.get(first, ()), *by_start.get(text[i : i + 2], ()))
                said.update(point for point in near if text.startswith(point, i))
        df.update(said)
    return df


def write_idf(idf: Mapping[str, Mapping[str, float]], path: str | Path) -> None:
    """Write what `build_idf` returns as a UTF-8 JSON file; its folder is made where it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(idf, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
