"""METEOR: the published numbers, the formula against the jar's, odd input, and a process that fails."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from metrics.base import Measured
from metrics.meteor import COLUMNS, FOLDER, MeteorProcess, aggregate, java_missing, joined, meteor, summable
from metrics.ngram import upstream_text
from metrics.scoring.confidence import by_video, resample_counts
from metrics.words.segment import sentencepiece_tokenizer
from videonarrator.schema import NarratorError

ENGLISH = [  # (narration, reference): function words, stems, synonyms, paraphrases
    ("the cat sat on the mat", "the cat sat on the mat"),
    ("a fast car drives through the streets", "a quick automobile is driving down the street"),
    ("this bottle keeps its water cold for a very long time", "water stays cold in the bottle for ages"),
    ("he took into account what they had said", "he considered what they said"),
    ("in order to open it you have to press", "to open it , press the button"),
    ("nothing alike", "the colour is red"),
    ("", "an empty narration"),
]


@pytest.fixture(scope="module")
def java() -> None:
    """METEOR can run here."""
    reason = java_missing()
    if reason and os.environ.get("VIDEONARRATOR_REQUIRE_SHARED"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def process(java: None, tmp_path_factory: pytest.TempPathFactory):
    """The one process of these tests, where METEOR by itself fails: German numbers, a blank in its path."""
    folder = tmp_path_factory.mktemp("site packages")
    for name in ("meteor-1.5.jar", "data"):
        (folder / name).symlink_to(FOLDER / name)
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules["metrics.meteor"], "FOLDER", folder)  # `metrics.meteor` is the function
            patch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE -Dfile.encoding=US-ASCII")
            running = stack.enter_context(MeteorProcess())
        yield running


@pytest.fixture(scope="module")
def captions(fixture_folder: Path, golden: dict) -> tuple[list[str], list[str]]:
    """The fixture's narrations and references as the published code prepares them, in its order."""
    entries = json.loads((fixture_folder / "data" / "output.json").read_text("utf-8"))
    chosen = [entries[key] for key in golden["per_sample"]["caption"]["keys"]]
    narrations = [str(upstream_text(entry["0.1"])) for entry in chosen]
    return narrations, [str(upstream_text(entry["gt"])) for entry in chosen]


@pytest.fixture(scope="module")
def measured(captions: tuple[list[str], list[str]], fixture_folder: Path, process: MeteorProcess) -> Measured:
    """The fixture's METEOR, run in a thread, as beside other work."""
    encode = sentencepiece_tokenizer(fixture_folder / "models" / "baichuan-tokenizer").encode
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(meteor, *captions, encode, process).result()


def test_published_numbers(measured: Measured, golden: dict) -> None:
    assert measured.value == pytest.approx(golden["final"]["meteor"], rel=1e-9)
    assert measured.per_item == pytest.approx(golden["per_sample"]["caption"]["meteor"], rel=1e-9)
    assert measured.statistics is not None
    assert measured.aggregate(measured.statistics) == pytest.approx(measured.per_item, rel=1e-9)
    assert measured.aggregate(measured.statistics.sum(0)) == pytest.approx(measured.value, rel=1e-9)


def test_formula_by_hand() -> None:
    """Three words of six, half function words: P = 1, R = (2 x .75 + .25) / 3, one chunk of three words."""
    statistics = np.zeros(COLUMNS)
    statistics[[0, 1, 2, 3, 4, 5, 6, 7, 20, 21, 22]] = [3, 6, 1, 3, 2, 2, 1, 1, 1, 3, 3]
    recall = 1.75 / 3
    expected = recall / (0.85 + 0.15 * recall) * (1 - 0.6 * (1 / 3) ** 0.2)
    assert aggregate(summable(statistics)) == pytest.approx(expected, rel=1e-12)
    assert np.isnan(aggregate(np.zeros(COLUMNS)))


def made_up(n: int) -> np.ndarray:
    """Statistics of pairs as they may be, with matches of every matcher in content and function words."""
    rng, rows = np.random.default_rng(1), []
    for _ in range(n):
        matches = rng.integers(0, 5, (4, 4))  # matcher; content words of h, of r, function words of h, of r
        (content_h, content_r, function_h, function_r), more = matches.sum(0), rng.integers(0, 6, 4)
        functions = function_h + more[0], function_r + more[1]
        words = content_h + functions[0] + more[2], content_r + functions[1] + more[3]
        matched = content_h + function_h, content_r + function_r
        rows.append([*words, *functions, *matches.ravel(), rng.integers(1, min(matched) + 1), *matched])
    return np.array(rows, dtype=np.float64)


def test_formula_is_meteors(process: MeteorProcess, captions: tuple[list[str], list[str]]) -> None:
    """Every pair, and sums over videos drawn with replacement, against the jar that is given each row."""
    pairs = [(joined(n), joined(r)) for n, r in zip(*(side[:60] for side in captions), strict=True)]
    statistics = np.concatenate([process.statistics(pairs + ENGLISH), made_up(40)])
    segments, total = process.evaluate(statistics)
    rows = summable(statistics)
    assert aggregate(rows) == pytest.approx(segments, rel=1e-9, abs=1e-15)
    assert aggregate(rows.sum(0)) == pytest.approx(total, rel=1e-9)
    assert min(segments) == 0 and max(segments) == 1

    order = [str(i) for i in range(12)]
    videos = [order[i % 12] for i in range(len(statistics))]
    counts = resample_counts(len(order), 12, seed=3)
    values = aggregate(counts @ by_video(rows, videos, order))
    for value, drawn in zip(values, counts, strict=True):
        chosen = [i for i, video in enumerate(videos) for _ in range(drawn[int(video)])]
        assert value == pytest.approx(process.evaluate(statistics[chosen])[1], rel=1e-9)
    assert (aggregate((counts @ by_video(rows, videos, order)).reshape(3, 4, -1)).ravel() == values).all()


def test_perfect_pairs_stay_perfect_in_the_sum(process: MeteorProcess) -> None:
    texts = ["这款面霜质地轻薄", "杯身是蓝色的"]
    result = meteor(texts, texts, process=process)
    assert result.value == 1 and result.per_item == [1, 1]
    assert result.statistics is not None and aggregate(result.statistics.sum(0)) == 1


def test_worse_narrations_score_worse(process: MeteorProcess, captions: tuple[list[str], list[str]]) -> None:
    """Negative controls: every narration under another clip; the reference's characters backwards."""
    references = [text[:30] for text in captions[1][:40]]
    same = meteor(references, references, process=process).value
    backwards = meteor([text[::-1] for text in references], references, process=process).value
    moved = meteor(references[1:] + references[:1], references, process=process).value
    assert same == 1 and 0.3 < backwards < 0.6 and moved < 0.3


def test_empty_narration_counts(process: MeteorProcess) -> None:
    """It scores 0, and its reference's words are in the aggregate."""
    result = meteor(["", "杯身是蓝"], ["质地轻薄", "杯身是蓝"], process=process)
    assert result.per_item == [0, 1]
    assert result.statistics is not None and result.statistics[0, :2].tolist() == [0, 4]
    assert result.value == pytest.approx(0.5 / (0.85 + 0.15 * 0.5))  # half of the words, no fragmentation
    assert meteor([""], ["质地轻薄"], process=process).value == 0


def test_odd_tokens(process: MeteorProcess) -> None:
    """Nothing a token holds can break the lines of the protocol: as many answers, each in its place."""
    odd = ["a b", "c\nd", "e|||f", "|||", "||||", "\r", "\u2028", "\ud800", "\x00", "SCORE", "|", "", "。"]
    texts = ["".join(map(chr, range(i, i + 6))) for i in range(len(odd) - 5)]
    result = meteor(texts, texts, lambda text: [odd[ord(char)] for char in text], process)
    assert result.per_item == [1] * len(texts)
    alone = meteor(texts[3:4], texts[:1], lambda text: [odd[ord(char)] for char in text], process)
    assert 0 < alone.value < 1


def test_repeated_pairs(process: MeteorProcess) -> None:
    pairs = [("1 2", "1 3"), ("4", "5"), ("1 2", "1 3")]
    statistics = process.statistics(pairs)
    assert (statistics[0] == statistics[2]).all() and statistics[1, 21] == 0
    assert process.statistics([]).shape == (0, COLUMNS)


def test_unequal_or_empty_lists() -> None:
    for narrations, references in (([], []), (["a", "b"], ["a", "b", "c"])):
        with pytest.raises(ValueError, match="need"):
            meteor(narrations, references)


def test_dead_process(java: None) -> None:
    with MeteorProcess() as running:
        running._process.kill()
        for _ in range(2):  # and stays dead
            with pytest.raises(RuntimeError, match="ended with exit code -9"):
                running.statistics([("1", "1")])


def test_java_that_refuses_says_why(java: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Xms9G")  # more than METEOR's largest heap
    with MeteorProcess() as running, pytest.raises(RuntimeError, match="exit code 1: ") as caught:
        running.statistics([("1", "1")])
    assert "heap size" in str(caught.value)


def test_silent_process(java: None) -> None:
    with MeteorProcess(silence=0.01) as running:
        with pytest.raises(RuntimeError, match=r"silent for 0\.01 s"):
            running.statistics([("1 " * 1000, "1")] * 1000)
        assert running._process.wait(30) != 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_process_ends_with_its_context(java: None, error: type[BaseException]) -> None:
    with pytest.raises(error), MeteorProcess() as running:
        raise error
    assert running._process.returncode is not None


def test_no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no `java` program" in str(java_missing()) and "apt-get install" in str(java_missing())
    with pytest.raises(NarratorError, match="needs Java"):
        meteor(["一"], ["一"])
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\necho unable to locate a runtime >&2\nexit 1\n")
    program.chmod(0o755)
    assert "does not work (unable to locate a runtime)" in str(java_missing())
