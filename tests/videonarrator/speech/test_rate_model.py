"""The speaking rate: seconds of a text, fit classes, ranges, files."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videonarrator.length import DEFAULT_RATE, count_units, range_for_duration
from videonarrator.schema import NarratorError
from videonarrator.speech import (
    SpeakingRate,
    count_spoken,
    default_rate,
    fit_of,
    load_rate,
    read_rate,
    save_rate,
    scaled,
    spoken_seconds,
)

RATE = SpeakingRate(
    "zh", 5.0, syllable=0.2, light=0.1, latin=0.3, weak_pause=0.25, strong_pause=0.5, constant=0.4
)


def test_seconds_are_counts_times_coefficients():
    assert spoken_seconds("好看，真的好看。买USB！", RATE) == pytest.approx(
        6 * 0.2 + 1 * 0.1 + 3 * 0.3 + 1 * 0.25 + 1 * 0.5 + 0.4
    )
    english = SpeakingRate("en", 2.5, syllable=0.1, light=0.05, word=0.2, consonant=0.01)
    assert spoken_seconds("Take the mug.", english) == pytest.approx(2 * 0.1 + 0.05 + 2 * 0.2 + 5 * 0.01)
    assert spoken_seconds("", RATE) == spoken_seconds("。，！", RATE) == 0


def test_a_price_takes_as_long_as_its_words():
    assert spoken_seconds("只要¥99", RATE) == spoken_seconds("只要九十九元", RATE)
    assert spoken_seconds("只要¥99", RATE) > spoken_seconds("只要元", RATE)


@given(st.lists(st.sampled_from(["这款", "只要九元", "USB ", "，", "。", "好吗？"]), max_size=12))
def test_more_text_never_takes_less_time(parts):
    seconds = [spoken_seconds("".join(parts[:end]), RATE) for end in range(len(parts) + 1)]
    assert all(earlier <= later + 1e-9 for earlier, later in pairwise(seconds))


@pytest.mark.parametrize(
    ("seconds", "clip", "fit"),
    [
        (0.0, 3.0, "comfortable"),
        (2.7, 3.0, "comfortable"),
        (2.7001, 3.0, "tight"),
        (3.0, 3.0, "tight"),
        (3.0001, 3.0, "fast"),
        (3.6, 3.0, "fast"),
        (3.6001, 3.0, "over"),
        (9.0, 3.0, "over"),
        (0.09, 0.1, "comfortable"),
    ],
)
def test_fit_classes_at_their_borders(seconds, clip, fit):
    assert fit_of(seconds, clip) == fit


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clip_without_duration_has_no_fit(clip):
    with pytest.raises(NarratorError, match="expected a duration greater than 0"):
        fit_of(1.0, clip)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_defaults_are_the_ones_of_length_ranges(language):
    rate = default_rate(language)
    assert rate.language == language and rate.source
    assert rate.units_per_second == DEFAULT_RATE[language]
    ours = range_for_duration(5.2, rate.units_per_second, language)
    assert ours == range_for_duration(5.2, language=language)


def test_typical_texts_take_what_units_per_second_say(real_videos):
    rate = default_rate("zh")
    texts = [clip.text for video in real_videos for clip in video.clips if clip.text]
    speeds = sorted(count_units(text) / spoken_seconds(text, rate) for text in texts)
    assert speeds[len(speeds) // 2] == pytest.approx(rate.units_per_second, rel=0.01)


def test_texts_at_the_upper_end_of_their_range_about_fill_their_clip(real_videos):
    rate = default_rate("zh")
    texts = [clip.text for video in real_videos for clip in video.clips if clip.text]
    medians = []
    for shortest, longest in ((1, 9), (10, 14), (15, 19), (20, 29), (30, 44), (45, 999)):
        shares = [
            spoken_seconds(text, rate) / (len(text) / rate.units_per_second)
            for text in texts
            if shortest <= len(text) <= longest
        ]
        medians.append(sorted(shares)[len(shares) // 2])
        print(f"{shortest}-{longest} characters: {medians[-1]:.2f} of the clip")
    assert medians[0] < 1.2 and all(0.95 < share < 1.06 for share in medians[1:])


def test_scaling_keeps_the_proportions():
    twice = scaled(RATE, 10.0)
    assert spoken_seconds("好看，真的。USB", twice) == pytest.approx(
        spoken_seconds("好看，真的。USB", RATE) / 2
    )
    assert twice.units_per_second == 10.0 and scaled(twice, 5.0) == RATE


def test_what_the_user_types(tmp_path):
    assert read_rate(None, "zh") == default_rate("zh")
    assert read_rate("4.5", "zh").units_per_second == 4.5
    assert spoken_seconds("好看", read_rate("3", "zh")) == pytest.approx(
        2 * spoken_seconds("好看", default_rate("zh"))
    )
    file = tmp_path / "rate.yaml"
    save_rate(RATE, file)
    assert read_rate(str(file), "zh") == RATE
    with pytest.raises(NarratorError, match="of language zh, the narration is in en"):
        read_rate(str(file), "en")


@pytest.mark.parametrize("number", ["0", "-3", "nan", "inf"])
def test_numbers_that_are_no_rate(number):
    with pytest.raises(NarratorError, match=r"--rate is .*: expected characters \(or words\) a second"):
        read_rate(number, "zh")


def test_a_rate_file_comes_back_equal(tmp_path):
    rate = replace(RATE, voice="小燕", source="engine 'x' {text}: 100%", syllable=1 / 7)
    save_rate(rate, tmp_path / "new" / "rate.yaml")
    assert load_rate(tmp_path / "new" / "rate.yaml") == rate
    assert "voice: 小燕" in (tmp_path / "new" / "rate.yaml").read_text("utf-8")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("language: fr\nunits_per_second: 5\nsyllable: 0.2\n", "language is 'fr', expected one of zh, en"),
        ("language: zh\nsyllable: 0.2\n", "no value for units_per_second"),
        (
            "language: zh\nunits_per_second: 5\nsyllable: 0\n",
            "one of syllable, light, .* must be greater than 0",
        ),
        ("language: zh\nunits_per_second: 0\nsyllable: 0.2\n", "units_per_second and one of"),
        ("language: zh\nunits_per_second: 5\nsyllable: -0.2\n", "syllable is -0.2, expected a number, 0 or"),
        (
            "language: zh\nunits_per_second: 5\nsyllables: 0.2\n",
            r"unknown setting syllables \(did you mean syllable\?\)",
        ),
        ("- 0.2\n", "holds no settings"),
    ],
)
def test_files_that_are_no_rate(tmp_path, content, error):
    file = tmp_path / "rate.yaml"
    file.write_text(content, "utf-8")
    with pytest.raises(NarratorError, match=error) as raised:
        load_rate(file)
    assert str(raised.value).startswith(str(file))


def test_a_rate_file_that_is_not_there():
    with pytest.raises(NarratorError, match=r"no speaking rate fast\.yaml: give .* videonarrator calibrate"):
        read_rate("fast.yaml", "zh")


def test_languages_without_a_default():
    with pytest.raises(NarratorError, match="no speaking rate for language 'fr'; there are zh, en"):
        default_rate("fr")
    assert count_spoken("好", "zh") != count_spoken("好好", "zh")
