"""What a scene of the sample world can show, and the words that name it.

Everything a narration must *see* to say is here: colour, count, motion, price, place, and a gift shown in an
earlier clip. None of these words ever stands among a product's facts. Each scene kind is the visible cue of
one script label.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from videonarrator.schema import NarratorError

COLOURS = {
    "红色": (214, 40, 44),
    "橙色": (243, 132, 32),
    "黄色": (246, 208, 46),
    "绿色": (46, 150, 70),
    "蓝色": (36, 92, 208),
    "紫色": (128, 62, 176),
    "粉色": (246, 150, 184),
    "黑色": (44, 44, 50),
}
COUNTS = {"两只": 2, "三只": 3, "四只": 4}
MOTIONS = ("旋转", "滑行", "弹跳")
PRICES = ("19", "29", "39", "49", "59", "79", "99")
PLACES = ("海边", "草地", "雪地", "夜晚", "客厅")
GIFTS = ("星星", "爱心", "蝴蝶结", "铃铛")

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "count": tuple(COUNTS),
    "motion": MOTIONS,
    "price": PRICES,
    "place": PLACES,
    "gift": GIFTS,
}
"""Attribute -> the words that name its values."""

SCENE_KINDS = {
    "hero": "产品推荐",
    "problem": "痛点铺垫",
    "price": "引导购买",
    "display": "外观设计",
    "closeup": "质地/成分/材质",
    "use": "产品试用",
    "effect": "产品功效",
    "quality": "质量/特性介绍",
    "lab": "鉴定展示",
    "badge": "安全认证",
    "factory": "生产过程",
    "stars": "其他/通用卖点",
}
"""Scene kind -> the script label it is the visible cue of."""

PLACE_SCENES = ("hero", "display", "use", "price")
"""Scene kinds that show the place as their background; the others have a backdrop of their own."""


@dataclass(frozen=True)
class Scene:
    """One clip of a sample video as it is drawn. Empty strings are things that are not shown.

    sparkles: the sign of an effect, shown beside another cue (the clip's label is then joined by "+").
    """

    kind: str
    product: str
    colour: str
    place: str
    count: str = ""
    motion: str = ""
    price: str = ""
    gift: str = ""
    sparkles: bool = False

    def __post_init__(self) -> None:
        if self.kind not in SCENE_KINDS:
            raise NarratorError(f"unknown scene kind {self.kind!r}; known: {', '.join(SCENE_KINDS)}")
        for attribute, words in ATTRIBUTES.items():
            value = getattr(self, attribute)
            if value and value not in words:
                raise NarratorError(f"unknown {attribute} {value!r}; known: {', '.join(words)}")

    @property
    def label(self) -> str:
        """The script label(s) this scene is the cue of."""
        return SCENE_KINDS[self.kind] + ("+" + SCENE_KINDS["effect"] if self.sparkles else "")

    def shown(self) -> dict[str, str]:
        """Attribute -> value of what can be seen in this scene itself."""
        seen = {name: getattr(self, name) for name in ("colour", "count", "motion", "price", "gift")}
        if self.kind in PLACE_SCENES:
            seen["place"] = self.place
        if self.kind in ("problem", "factory", "stars", "badge"):
            seen.pop("colour")
        return {name: value for name, value in seen.items() if value}

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value}
