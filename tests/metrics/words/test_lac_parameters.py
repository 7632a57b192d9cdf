"""The parameter files that jieba brings: read as they are, and refused where they are damaged."""

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metrics.words import lac_parameters
from metrics.words.lac import Lac
from metrics.words.lac_parameters import OOV, SHAPES, TAGS, LacParameters, lac_folder, load_parameters
from videonarrator.schema import NarratorError


def test_parameters_are_the_files(parameters: LacParameters) -> None:
    crf = (lac_folder() / "model_baseline" / "crfw").read_bytes()
    assert (parameters.variables["crfw"].ravel() == np.frombuffer(crf, "<f4", offset=26)).all()
    assert len(parameters.ids) == 20940 and parameters.ids[OOV] == 20940 and parameters.ids["a"] == 0
    assert parameters.ids["\u3000"] == 10398 and parameters.ids["\x0b"] == 10770 and " " not in parameters.ids
    assert parameters.tags[::2] == [*(f"{tag[:-2]}-B" for tag in parameters.tags[1::2]), "O"]
    assert len(parameters.tags) == TAGS and len(parameters.digest) == 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of jieba's folder whose files are links, to be replaced."""
    (tmp_path / "model_baseline").mkdir()
    for name in ("word.dic", "tag.dic", *(f"model_baseline/{name}" for name in SHAPES)):
        (tmp_path / name).symlink_to(lac_folder() / name)
    return tmp_path


def test_digest_is_of_the_contents(folder: Path, parameters: LacParameters) -> None:
    assert load_parameters(folder).digest == parameters.digest
    damaged = bytearray((folder / "model_baseline/fc_4.b_0").read_bytes())
    damaged[-4:] = struct.pack("<f", 0.25)
    rewrite(folder / "model_baseline/fc_4.b_0", damaged)
    assert load_parameters(folder).digest != parameters.digest


def rewrite(path: Path, content: bytes | bytearray) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("word.dic", None, "No such file"),
        ("model_baseline/crfw", None, "No such file"),
        ("model_baseline/crfw", lambda data: b"", "damaged"),
        ("model_baseline/crfw", lambda data: data[:30], "damaged .4 bytes for type 5"),
        ("model_baseline/crfw", lambda data: data[:-1], "damaged"),
        ("model_baseline/crfw", lambda data: data + b"\0", "damaged"),
        ("model_baseline/crfw", lambda data: b"\1" + data[1:], "not a PaddlePaddle variable"),
        ("model_baseline/crfw", lambda data: b"\0\0\0\0" + b"\xff" * 8 + data[12:], "damaged"),
        ("model_baseline/crfw", lambda data: data[:21] + b"\6" + data[22:], "type 6"),
        ("model_baseline/crfw", lambda data: data[:22] + b"\x18" + data[23:], "descriptor without"),
        ("model_baseline/crfw", lambda data: data[:25] + b"\xb9" + data[26:], "descriptor without"),
        ("model_baseline/crfw", lambda data: data[:23] + b"\x39\x10\x3b" + data[26:], r"shape \(57, 59\)"),
        ("model_baseline/crfw", lambda data: data[:-4] + b"\0\0\xc0\x7f", "not finite"),
        ("word.dic", lambda data: data.replace(b"\tOOV\n", b"\tOUT\n"), "not 20941 ids"),
        ("word.dic", lambda data: data.replace(b"20940\t", b"20941\t"), "not 20941 ids"),
        ("word.dic", lambda data: data[:-2] + b"\xff\n", "damaged"),
        ("word.dic", lambda data: data.replace(b"\n7\tt", b"\n7 t"), "damaged .line '7 t'"),
        ("word.dic", lambda data: data + b"20939\tt\n", "damaged .line"),
        ("word.dic", lambda data: data + b"7\tOTHER\n", "an id stands there twice"),
        ("tag.dic", lambda data: data[: data.rindex(b"56\t")], "56 tags, not 57"),
    ],
)
def test_damaged_files(
    folder: Path, name: str, damage: Callable[[bytes], bytes] | None, message: str
) -> None:
    content = (folder / name).read_bytes()
    if damage is None:
        (folder / name).unlink()
    else:
        assert damage(content) != content
        rewrite(folder / name, damage(content))
    with pytest.raises(NarratorError, match=message) as caught:
        Lac.load(folder)
    assert str(folder / name) in str(caught.value) and "pip install" in str(caught.value)


def test_levels_of_detail_are_passed_over(folder: Path, parameters: LacParameters) -> None:
    path = folder / "model_baseline/crfw"
    content = path.read_bytes()
    rewrite(path, content[:4] + struct.pack("<QQ3s", 1, 3, b"abc") + content[12:])
    assert (load_parameters(folder).variables["crfw"] == parameters.variables["crfw"]).all()


def test_jieba_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lac_parameters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NarratorError, match="pip install jieba"):
        load_parameters()
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "jieba").mkdir()
    (tmp_path / "jieba" / "__init__.py").touch()
    jieba = sys.modules.pop("jieba", None)
    try:
        with pytest.raises(NarratorError, match="without its neural mode's files"):
            load_parameters()
    finally:
        if jieba is not None:
            sys.modules["jieba"] = jieba
