"""The idf file: the published one rebuilt from its annotations, what is refused, and how points are cut."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from metrics.idf import build_idf, cut_point, product_key, product_points, read_idf, write_idf
from videonarrator.schema import NarratorError, Product


@pytest.fixture(scope="module")
def annotations(fixture_folder: Path) -> dict[str, Any]:
    return json.loads((fixture_folder / "data" / "annotations.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def published_idf(fixture_folder: Path) -> dict[str, dict[str, float]]:
    return json.loads((fixture_folder / "data" / "idf.json").read_text(encoding="utf-8"))


def video(name: str, info: str, *texts: str | None) -> dict[str, Any]:
    return {"p_name": name, "p_info": info, "frames": [{} if t is None else {"new_text": t} for t in texts]}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "idf.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_published_file_is_rebuilt(annotations, published_idf) -> None:
    built = build_idf(annotations)
    assert list(built) == list(published_idf)
    for product, weights in published_idf.items():
        assert list(built[product]) == list(weights)
        assert built[product] == pytest.approx(weights, rel=0, abs=1e-12)


def test_read_and_written(annotations, published_idf, fixture_folder, tmp_path) -> None:
    points = {product: list(weights) for product, weights in published_idf.items()}
    assert read_idf(fixture_folder / "data" / "idf.json") == points
    write_idf(build_idf(annotations), tmp_path / "new" / "idf.json")
    assert read_idf(tmp_path / "new" / "idf.json") == points
    assert json.loads((tmp_path / "new" / "idf.json").read_text("utf-8")) == published_idf


def test_points_without_weights(annotations, published_idf) -> None:
    """Products alone give the same points in the same order."""
    points = product_points(Product(v["p_name"], v["p_info"]) for v in annotations.values())
    assert points == {product: list(weights) for product, weights in published_idf.items()}


def test_by_hand() -> None:
    """df counts videos, not clips; a point inside a longer word counts; one product's videos are united."""
    built = build_idf(
        {
            "a.mp4": video(
                "【新品】面霜", "质地：轻薄、水润、轻薄\n功效：保湿", "很轻薄水润", "轻薄，真轻薄"
            ),
            "b.mp4": video("【特惠】面霜", "功效：保湿、补水\n补：、", "高保湿度", None),
            "c.mp4": video("杯", "", "轻", "薄"),
        }
    )
    assert list(built) == ["面霜", "杯"]
    assert list(built["面霜"]) == ["面霜", "轻薄", "水润", "保湿", "补水"]
    expected = {"面霜": math.log(4), "轻薄": math.log(2), "水润": math.log(2), "保湿": math.log(2)}
    assert built["面霜"] == pytest.approx({**expected, "补水": math.log(4)}, abs=1e-15)
    assert built["杯"] == pytest.approx({"杯": math.log(4)}, abs=1e-15)


def test_document_frequencies_against_a_plain_loop(real_samples) -> None:
    """Real products and narrations; one-character and nested points included."""
    annotations = {}
    for sample in real_samples[:60]:
        head, *clips = re.split(r"剧本类型：", sample["inputs"])
        name, *info = head.split("\n\n")[0].split("\n")[1:]
        texts = [re.sub(r"\n镜头.*", "", clip, flags=re.S).split("\n", 1)[-1] for clip in clips]
        annotations[sample["id"]] = video(
            name.removeprefix("名称："), "\n".join([*info, "其他：水、的"]), *texts
        )
    found = 0
    for weights in build_idf(annotations).values():
        for point, weight in weights.items():
            df = sum(any(point in c["new_text"] for c in v["frames"]) for v in annotations.values())
            assert weight == pytest.approx(math.log(61 / (df + 1)), abs=1e-12)
            found += df > 1
    assert found > 100  # the loop saw narrations


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("【官方】杯", "杯"),
        ("杯", "杯"),
        ("【a】b【c】d", "b【c"),
        ("a】b", "b"),
        ("【a】", ""),
        ("a b", "a b"),
    ],
)
def test_product_key(name: str, key: str) -> None:
    assert product_key(name) == key


@pytest.mark.parametrize(
    ("point", "cut"),
    [
        ("YSL 1968透视", "YSL"),
        ("【新】杯子 大", "杯子"),
        ("轻薄", "轻薄"),
        (" 轻薄", ""),
        ("轻薄\u3000水", "轻薄\u3000水"),
    ],
)
def test_cut_point(point: str, cut: str) -> None:
    assert cut_point(point) == cut


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object, found a list"),
        ("{}", "empty"),
        ('{"杯": ["杯"]}', "product '杯': expected an object .* found a list"),
        ('{"杯": {}}', "product '杯': its first point must be .* but is missing"),
        ('{"杯": {"轻": 1, "杯": 1}}', "product '杯': its first point must be .* but is '轻'"),
        ('{"杯": {"杯": 1, "轻": "1"}}', "product '杯', point '轻': weight '1' is not a finite number"),
        ('{"杯": {"杯": 1, "轻": NaN}}', "product '杯', point '轻': weight nan"),
        ('{"杯": {"杯": -Infinity}}', "product '杯', point '杯': weight -inf"),
        ('{"杯": {"杯": true}}', "product '杯', point '杯': weight True"),
        ('{"杯": {"杯": null}}', "product '杯', point '杯': weight None"),
        ('{"杯": {"杯": 1}, "杯": {"杯": 1}}', "product '杯' stands in it more than once"),
    ],
)
def test_refused_files(tmp_path, text: str, message: str) -> None:
    with pytest.raises(NarratorError, match=message) as error:
        read_idf(write(tmp_path, text))
    assert "idf.json" in str(error.value)


def test_missing_file(tmp_path) -> None:
    with pytest.raises(NarratorError, match="no such file"):
        read_idf(tmp_path / "idf.json")


def test_weights_of_any_size_are_accepted(tmp_path) -> None:
    """They cancel out: 0, negative numbers and whole numbers beyond any float."""
    text = f'{{"杯": {{"杯": 0, "轻": -1.5, "薄": 1{"0" * 400}}}}}'
    assert read_idf(write(tmp_path, text)) == {"杯": ["杯", "轻", "薄"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], '"frames"'),
        ({"p_name": "杯", "p_info": ""}, '"frames"'),
        ({"p_name": "杯", "p_info": "", "frames": ["杯"]}, "no object"),
        ({"p_name": "杯", "p_info": "", "frames": [{"new_text": 3}]}, "no object"),
        ({"p_info": "功效：轻", "frames": []}, '"p_name" is None'),
        ({"p_name": "【新品】 ", "p_info": "", "frames": []}, "product's name"),
        ({"p_name": "杯", "p_info": ["轻"], "frames": []}, '"p_info" is'),
    ],
)
def test_refused_annotations(content: Any, message: str) -> None:
    with pytest.raises(NarratorError, match=message) as error:
        build_idf({"good.mp4": video("杯", ""), "bad.mp4": content})
    assert "bad.mp4" in str(error.value)
    with pytest.raises(NarratorError, match="no video"):
        build_idf({})


def test_products_without_information() -> None:
    assert build_idf({"a.mp4": {"p_name": "杯", "frames": []}}) == {"杯": {"杯": math.log(2)}}
