"""jieba's neural mode: what the real thing gave, a plain network written again, and what must not agree."""

import json
import random
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metrics.repetition import repetition
from metrics.words import lac_parameters
from metrics.words.lac import BATCH_CHARACTERS, Lac, batches
from metrics.words.lac_parameters import OOV, SHAPES, TAGS, LacParameters, lac_folder, load_parameters
from metrics.words.segment import lac_segmenter, load_segmenter, normalize
from videonarrator.schema import NarratorError

H = 128
TEXT = st.text(
    st.one_of(st.sampled_from("这款面霜质地轻薄，。！？３aＡB百度公司 \t\n\u3000😀한１2"), st.characters()),
    max_size=24,
)


@pytest.fixture(scope="module")
def parameters() -> LacParameters:
    return load_parameters()


@pytest.fixture(scope="module")
def lac(parameters: LacParameters) -> Lac:
    return Lac(parameters)


@pytest.fixture(scope="module")
def reference(shared: Path) -> list[dict[str, Any]]:
    """270 texts with the words and flags that jieba on PaddlePaddle gave."""
    found = json.loads((shared / "data" / "lac_reference.json").read_text("utf-8"))
    for case in found:
        case["pairs"] = [tuple(pair) for pair in case["pairs"]]
    return found


@pytest.fixture(scope="module")
def narrations(real_samples: list[dict]) -> list[str]:
    """The lines `1.<narration>` of 30 real videos."""
    prompts = [sample["inputs"].split("广告视频：")[1].splitlines() for sample in real_samples[:30]]
    numbered = [line.partition(".") for lines in prompts for line in lines]
    return [text for number, _, text in numbered if number.isdecimal()]


def test_words_and_flags_are_those_of_the_real_thing(lac: Lac, reference: list[dict]) -> None:
    texts = [case["text"] for case in reference]
    expected = [case["pairs"] for case in reference]
    assert len(texts) == 270
    assert lac.tag(texts) == expected
    assert [lac.tag([text])[0] for text in texts] == expected
    assert [[word for word, _ in words] for words in expected] == [case["cut"] for case in reference]


def test_emissions_and_paths_are_those_of_the_real_thing(lac: Lac, shared: Path) -> None:
    cases = json.loads((shared / "data" / "lac_reference_raw.json").read_text("utf-8"))
    assert len(cases) == 20
    for case in cases:
        assert lac.ids(case["text"]) == case["ids"]
        emissions = lac.emissions(case["ids"])
        assert emissions.shape == (len(case["ids"]), TAGS) and emissions.dtype == np.float32
        assert np.abs(emissions[0] - case["emission_first_row"]).max() < 1e-4
        # The sum's terms nearly cancel: what may be off is measured by the terms.
        assert abs(emissions.sum(dtype=float) - case["emission_sum"]) < 1e-5 * np.abs(emissions).sum()
        assert lac.viterbi(emissions).tolist() == case["path"]


def test_known_words(lac: Lac) -> None:
    assert lac.tag(["百度是一家高科技公司"]) == [
        [("百度", "ORG"), ("是", "v"), ("一家", "m"), ("高科技", "n"), ("公司", "n")]
    ]
    assert lac.tag(["tab\t中间", " \n", "百度 公司", "", "中间 有 空格"]) == [
        [("tab ", "nz"), *lac.tag(["tab\t中间"])[0][1:]],
        [],
        [("百度 公司", "ORG")],
        [],
        [("中间", "f"), (" ", "v"), ("有", "v"), (" ", "n"), ("空格", "n")],
    ]


class Plain:
    """LAC.md word by word: one text, one step after the other, in float64."""

    def __init__(self, parameters: LacParameters) -> None:
        self.parameters = parameters
        self.v = {name: value.astype(float) for name, value in parameters.variables.items()}
        self.characters = {number: entry for entry, number in parameters.ids.items()}

    def emissions(self, ids: list[int]) -> np.ndarray:
        x = self.v["word_emb"][ids]
        for forward, backward in ((0, 1), (2, 3)):
            x = np.concatenate([self.gru(x, forward), self.gru(x[::-1], backward)[::-1]], axis=1)
        return x @ self.v["fc_4.w_0"] + self.v["fc_4.b_0"]

    def gru(self, x: np.ndarray, k: int) -> np.ndarray:
        buffer = self.v[f"gru_{k}.w_0"].ravel()
        gate_weights, candidate_weights = (
            buffer[: 2 * H * H].reshape(H, 2 * H),
            buffer[2 * H * H :].reshape(H, H),
        )
        h, states = np.zeros(H), []
        for row in x:
            z = row @ self.v[f"fc_{k}.w_0"] + self.v[f"fc_{k}.b_0"] + self.v[f"gru_{k}.b_0"][0]
            g = 1 / (1 + np.exp(-np.clip(z[: 2 * H] + h @ gate_weights, -40, 13)))
            update, reset = g[:H], g[H:]
            c = np.tanh(z[2 * H :] + (reset * h) @ candidate_weights)
            h = (1 - update) * h + update * c
            states.append(h)
        return np.array(states)

    def viterbi(self, emissions: np.ndarray) -> list[int]:
        start, end, transition = self.v["crfw"][0], self.v["crfw"][1], self.v["crfw"][2:]
        alpha, before = start + emissions[0], []
        for row in emissions[1:]:
            scores = alpha[:, None] + transition
            before.append(scores.argmax(axis=0))
            alpha = row + scores.max(axis=0)
        path = [int((alpha + end).argmax())]
        for choice in reversed(before):
            path.append(int(choice[path[-1]]))
        return path[::-1]

    def tag(self, text: str) -> list[tuple[str, str]]:
        ids = [self.parameters.ids.get(character, self.parameters.ids[OOV]) for character in text.strip()]
        words: list[list[str]] = []
        previous = ""
        path = self.viterbi(self.emissions(ids)) if ids else []
        for number, tag in zip(ids, (self.parameters.tags[i] for i in path), strict=True):
            character = " " if self.characters[number] == OOV else self.characters[number]
            if not words or tag.endswith("-B") or (tag == "O" and previous != "O"):
                words.append([character, tag.split("-")[0]])
            else:
                words[-1][0] += character
            previous = tag
        return [(word, flag) for word, flag in words]


@pytest.fixture(scope="module")
def plain(parameters: LacParameters) -> Plain:
    return Plain(parameters)


def test_plain_network_is_the_real_thing_too(plain: Plain, reference: list[dict]) -> None:
    assert [plain.tag(case["text"]) for case in reference[::5]] == [case["pairs"] for case in reference[::5]]


def test_real_narrations(lac: Lac, plain: Plain, narrations: list[str]) -> None:
    texts = narrations[:80]
    assert lac.tag(texts) == [plain.tag(text) for text in texts]
    for text in texts[:8]:
        ids = lac.ids(text)
        assert np.abs(lac.emissions(ids) - plain.emissions(ids)).max() < 1e-4


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXT, max_size=6), st.integers(1, 4))
@example(["\x1c\x85a\u2028b\u3000", "\ud800", "\x00", "👨‍👩‍👧", "e\u0301", "OOV", "\r", "\x0b中\x0c"], 3)
def test_any_text(lac: Lac, plain: Plain, texts: list[str], batch_size: int) -> None:
    found = lac.tag(texts, batch_size)
    assert found == [plain.tag(text) for text in texts]
    for text, words in zip(texts, found, strict=True):
        assert len("".join(word for word, _ in words)) == len(text.strip())
        assert all(word and flag for word, flag in words)


def test_words_do_not_depend_on_the_batch(lac: Lac, narrations: list[str]) -> None:
    texts = [*narrations, "", "好", " 好 ", "😀"]
    expected = dict(zip(texts, lac.tag(texts), strict=True))
    rng = random.Random(0)
    for batch_size in (1, 3, 16, 1000):
        some = rng.choices(texts, k=60)
        assert lac.tag(some, batch_size) == [expected[text] for text in some]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.booleans())
def test_viterbi(parameters: LacParameters, length: int, seed: int, ties: bool) -> None:
    """With small whole numbers many paths are equally good, and the first maximum counts."""
    rng = np.random.default_rng(seed)
    emissions = rng.normal(size=(length, TAGS)).astype(np.float32) * 3
    if ties:
        emissions = emissions.round()
        crf = rng.integers(-1, 2, SHAPES["crfw"]).astype(np.float32)
        parameters = replace(parameters, variables={**parameters.variables, "crfw": crf})
    found = Lac(parameters).viterbi(emissions).tolist()
    plain = Plain(replace(parameters, variables={"crfw": parameters.variables["crfw"]}))
    assert found == plain.viterbi(emissions.astype(float))


LONG = ("这款面霜质地轻薄不油腻，😀 百度是一家高科技公司。" * 400)[:10_000]


def test_long_text_among_short_ones(lac: Lac) -> None:
    short = [f"百度是一家高科技公司{i}" for i in range(70)]
    alone = lac.tag(short)
    found = lac.tag([*short[:30], LONG, *short[30:]])
    assert found[:30] + found[31:] == alone
    assert "".join(word for word, _ in found[30]) == LONG.replace("😀", " ")


def test_memory_is_bounded(lac: Lac) -> None:
    """No padding (64 x 2,000 rows would be over a gigabyte), and one batch's characters at once."""
    for texts in ([LONG[:2000], *["好"] * 63], [LONG[:250]] * 64):
        tracemalloc.start()
        try:
            lac.tag(texts)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 12e3 * min(BATCH_CHARACTERS, sum(map(len, texts))) + 5e6


@given(st.lists(st.integers(1, BATCH_CHARACTERS * 2), min_size=1, max_size=40), st.integers(1, 9))
def test_batches_are_bounded(lengths: list[int], batch_size: int) -> None:
    sequences = [range(length) for length in lengths]
    found = list(batches([*range(len(lengths))], sequences, batch_size))
    assert [i for batch in found for i in batch] == [*range(len(lengths))]
    for batch in found:
        assert len(batch) <= batch_size
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= BATCH_CHARACTERS


def test_wrong_calls(lac: Lac) -> None:
    assert lac.tag([]) == [] and lac.tag(["", "\u3000\t"]) == [[], []]
    with pytest.raises(ValueError, match="batch_size 0"):
        lac.tag(["好"], 0)
    with pytest.raises(ValueError, match="no ids"):
        lac.emissions([])


# What must not agree: mistakes that look right.


def swapped_ends(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"crfw": variables["crfw"][[1, 0, *range(2, 2 + TAGS)]]}


def transposed_transitions(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"crfw": np.concatenate([variables["crfw"][:2], variables["crfw"][2:].T])}


def swapped_gates(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Update for reset."""
    order = [*range(H, 2 * H), *range(H), *range(2 * H, 3 * H)]
    swapped = {
        name: variables[name][..., order]
        for k in range(4)
        for name in (f"fc_{k}.w_0", f"fc_{k}.b_0", f"gru_{k}.b_0")
    }
    for k in range(4):
        buffer = variables[f"gru_{k}.w_0"].ravel().copy()
        gates = buffer[: 2 * H * H].reshape(H, 2 * H)
        gates[:] = gates[:, order[: 2 * H]]
        swapped[f"gru_{k}.w_0"] = buffer.reshape(H, 3 * H)
    return swapped


def columns_of_the_buffer(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The GRU's weights read as the [128, 384] matrix that their file says they are."""

    def relaid(weights: np.ndarray) -> np.ndarray:
        return np.concatenate([weights[:, : 2 * H].ravel(), weights[:, 2 * H :].ravel()]).reshape(
            weights.shape
        )

    return {f"gru_{k}.w_0": relaid(variables[f"gru_{k}.w_0"]) for k in range(4)}


def one_direction(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The backward weights in both directions of the first layer."""
    return {
        name: variables[name.replace("_0.", "_1.", 1)]
        for name in variables
        if name.startswith(("fc_0.", "gru_0."))
    }


def no_gru_bias(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"gru_{k}.b_0": np.zeros_like(variables[f"gru_{k}.b_0"]) for k in range(4)}


@pytest.mark.parametrize(
    ("mistake", "wrong"),
    [
        (swapped_ends, 0.2),
        (transposed_transitions, 0.9),
        (swapped_gates, 0.9),
        (columns_of_the_buffer, 0.9),
        (one_direction, 0.9),
        (no_gru_bias, 0.5),
    ],
)
def test_mistakes_show(
    mistake: Callable, wrong: float, parameters: LacParameters, reference: list[dict]
) -> None:
    """At least this share of the reference texts gets other words."""
    variables = {**parameters.variables, **mistake(parameters.variables)}
    found = Lac(replace(parameters, variables=variables)).tag([case["text"] for case in reference])
    different = [words != case["pairs"] for words, case in zip(found, reference, strict=True)]
    assert np.mean(different) >= wrong


# The parameter files.


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


def test_neither_jieba_nor_torch_is_imported() -> None:
    code = (
        "import sys; from metrics.words.segment import load_segmenter;"
        "load_segmenter('zh', 'lac').tagged('好');"
        "print([name for name in ('jieba', 'torch', 'paddle') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# The segmenters.


def test_segmenter_gives_the_same_words_prepared_or_not(
    lac: Lac, narrations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = narrations[80:120]
    expected = {text: tuple(words) for text, words in zip(texts, lac.tag(texts), strict=True)}
    segmenter = load_segmenter("zh", "lac")
    assert [segmenter.tagged(text) for text in texts[:5]] == [expected[text] for text in texts[:5]]
    segmenter.prepare(text for text in [*texts, *texts, ""])
    monkeypatch.setattr(Lac, "tag", None)  # nothing is left to be computed
    assert [segmenter.tagged(text) for text in texts] == [expected[text] for text in texts]
    assert segmenter.words("") == [] and segmenter.words(texts[0]) == [word for word, _ in expected[texts[0]]]


def test_user_dictionary_has_no_effect(tmp_path: Path) -> None:
    """As in jieba, whose neural mode never looks at it."""
    (tmp_path / "words.txt").write_text("高科技公司 99999 n\n", encoding="utf-8")
    plain = load_segmenter("zh", "lac")
    assert load_segmenter("zh", "lac", tmp_path / "words.txt").name == plain.name
    assert load_segmenter("zh", "lac", tmp_path / "words.txt").words("高科技公司") == ["高科技", "公司"]


def test_names(lac: Lac) -> None:
    names = {load_segmenter("zh", name).name for name in ("jieba", "lac", "lac-normalized")}
    assert len(names) == 3
    assert lac_segmenter().name == f"jieba-0.42.1 lac exact, parameters {lac.digest[:12]}"
    assert lac_segmenter() is load_segmenter("zh", "lac") is not lac_segmenter(True)
    with pytest.raises(NarratorError, match="there is: jieba, lac, lac-normalized"):
        load_segmenter("zh", "LAC")


def test_normalize() -> None:
    assert normalize("ＡＢｃ，！？：（）０９～\u3000A-Z。、“”…—中İΣ") == "abc,!?:()09~ a-z.,“”…—中İσ"


@settings(deadline=None)
@given(TEXT)
@example("ΑΣ İ\u3000ﬀ\t")
def test_normalized_words_are_the_text_itself(lac: Lac, text: str) -> None:
    assert len(normalize(text)) == len(text) and normalize(normalize(text)) == normalize(text)
    found = lac_segmenter(True).tagged(text)
    assert "".join(word for word, _ in found) == text.strip()
    expected = lac.tag([normalize(text)])[0]
    assert [(len(word), flag) for word, flag in found] == [(len(word), flag) for word, flag in expected]


def test_normalized_punctuation_is_punctuation(narrations: list[str]) -> None:
    """Of the marks of real narrations, exact mode takes none for punctuation, and the other nearly all."""
    counts = {}
    for normalized in (False, True):
        segmenter = lac_segmenter(normalized)
        segmenter.prepare(narrations)
        pairs = [pair for text in narrations for pair in segmenter.tagged(text)]
        counts[normalized] = [pairs.count((mark, "w")) for mark in "，。、"]
    there = [sum(text.count(mark) for text in narrations) for mark in "，。、"]
    assert min(there) > 10 and counts[False] == [0, 0, 0]
    assert all(found > 0.9 * of for found, of in zip(counts[True], there, strict=True))


def test_metric_with_neural_words(narrations: list[str]) -> None:
    stories = [narrations[:5], narrations[5:10]]
    segmenter = lac_segmenter()
    segmenter.prepare(text for story in stories for text in story)
    same = [[story[0]] * 5 for story in stories]
    assert repetition(same, segmenter.words).value > 1 > repetition(stories, segmenter.words).value > 0
