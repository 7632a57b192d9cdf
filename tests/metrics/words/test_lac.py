"""jieba's neural mode: what the real thing gave, a plain network written again, and what must not agree."""

import json
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain_lac import TEXT, H, Plain

from metrics.words.lac import BATCH_CHARACTERS, Lac, batches
from metrics.words.lac_parameters import SHAPES, TAGS, LacParameters


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


@settings(deadline=None)
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
