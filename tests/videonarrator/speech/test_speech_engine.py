"""Measuring a speech engine, and how well a rate fitted on it predicts it (espeak-ng)."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from speech_texts import chinese_texts, english_texts

from videonarrator.cli import main
from videonarrator.schema import NarratorError
from videonarrator.speech import load_rate, reading, spoken_seconds
from videonarrator.speech.engine import measure, parse_command, speak
from videonarrator.speech.fitting import fit_rate

CHINESE = "espeak-ng -v cmn-latn-pinyin -s 260 -w {wav} {text}"
ENGLISH = "espeak-ng -v en-us -s 175 -w {wav} {spoken}"


def measured(folder, engine, texts, language):
    seconds, failed = measure(engine, texts, language, folder / "measured.jsonl", lambda line: None)
    assert not failed
    return [seconds[text] for text in texts]


@pytest.fixture(scope="module")
def spoken(espeak, real_videos, tmp_path_factory):
    """Per language: texts and their measured seconds to fit on, and 100 unseen."""
    folder = tmp_path_factory.mktemp("engine")
    worlds = {"zh": (CHINESE, *chinese_texts(real_videos)), "en": (ENGLISH, *english_texts())}
    return {
        language: [(texts, measured(folder, engine, texts, language)) for texts in (known, unseen)]
        for language, (engine, known, unseen) in worlds.items()
    }


def relative_errors(rate, texts, seconds):
    predicted = np.array([spoken_seconds(text, rate) for text in texts])
    return np.abs(predicted / np.array(seconds) - 1)


def share_near(known, unseen, language):
    """Share of unseen texts whose seconds are predicted to 10%."""
    return np.mean(relative_errors(fit_rate(*known, language), *unseen) <= 0.10)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_90_of_100_unseen_narrations_are_predicted_to_10_percent(spoken, language):
    known, unseen = spoken[language]
    assert len(unseen[0]) == 100 and not set(known[0]) & set(unseen[0])
    assert sum(bool(re.search(r"\d", text)) for text in unseen[0]) >= 25
    near = share_near(known, unseen, language)
    print(f"{language}: {near:.0%} of the unseen are within 10%")
    assert near >= 0.90


def test_english_as_the_engine_expands_it(spoken, tmp_path):
    """Its own reading of numbers differs ($12.99: dollar twelve point nine nine), which costs a little."""
    template = ENGLISH.replace("{spoken}", "{text}")
    known, unseen = ((texts, measured(tmp_path, template, texts, "en")) for texts, _ in spoken["en"])
    near = share_near(known, unseen, "en")
    print(f"en: {near:.0%} of the unseen are within 10% where the engine expands the text itself")
    assert 0.80 <= near < share_near(*spoken["en"], "en")


@pytest.fixture
def unexpanded(monkeypatch):
    """Texts are counted as they are written, a digit as one syllable."""
    reading.count_spoken.cache_clear()
    monkeypatch.setattr(reading, "spoken_text", lambda text, language: text)
    yield
    reading.count_spoken.cache_clear()


def price_errors(spoken, folder):
    """Errors on Chinese texts full of numbers, which the engine reads by itself (no {spoken} in CHINESE)."""
    prices = (Path(__file__).parent / "prices_zh.txt").read_text("utf-8").splitlines()
    return relative_errors(fit_rate(*spoken["zh"][0], "zh"), prices, measured(folder, CHINESE, prices, "zh"))


def test_numbers_are_predicted_as_the_engine_reads_them(spoken, tmp_path):
    errors = price_errors(spoken, tmp_path)
    print(f"zh: mean error on prices {errors.mean():.1%}, largest {errors.max():.1%}")
    assert errors.mean() < 0.06 and errors.max() < 0.12
    assert share_near(*spoken["en"], "en") >= 0.9


def test_without_expansion_it_gets_worse(spoken, tmp_path, unexpanded):
    errors = price_errors(spoken, tmp_path)
    english = share_near(*spoken["en"], "en")
    print(f"without expansion, zh: mean error on prices {errors.mean():.1%}, largest {errors.max():.1%}")
    print(f"without expansion, en: {english:.0%} of the unseen are within 10%")
    assert errors.mean() > 0.07 and errors.max() > 0.18
    assert english < 0.7


@pytest.mark.parametrize(("language", "loss"), [("zh", 0.01), ("en", 0.1)])
def test_without_pauses_it_gets_worse(spoken, language, loss):
    def unmarked(text):
        return re.sub(r"[，。、；：？！,;:!?]|\.(?=\s|$)", "", text)

    known, unseen = spoken[language]
    joined = [([unmarked(text) for text in texts], seconds) for texts, seconds in (known, unseen)]
    without, with_pauses = share_near(*joined, language), share_near(known, unseen, language)
    print(f"{language}: {without:.0%} without pauses, {with_pauses:.0%} with them")
    assert without <= with_pauses - loss


def test_the_chinese_voice_reads_characters(espeak, tmp_path):
    """cmn-latn-pinyin says one syllable a character (cmn would read each one's pinyin as English)."""
    texts = ["你好你好你好你好", "ni3 hao3 ni3 hao3 ni3 hao3 ni3 hao3"]
    characters, pinyin = measured(tmp_path, CHINESE, texts, "zh")
    assert characters == pytest.approx(pinyin, rel=0.1)


def test_the_verb_fits_an_engine(espeak, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join([*english_texts()[1][:40], "", "...", "100W"]), "utf-8")
    out = tmp_path / "rate.yaml"
    words = [
        "calibrate",
        "--engine",
        ENGLISH,
        "--texts",
        tmp_path / "texts.txt",
        "--language",
        "en",
        "--out",
        out,
    ]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    result, err = capsys.readouterr()
    result = json.loads(result)
    assert ended.value.code == 3 and result["failed"] == {"'...'": "has nothing to say"}
    assert result["pairs"] == 41 and result["median_error"] < 0.1 and result["within_10_percent"] > 0.6
    assert re.search(r"measured 41/41 texts, [\d.]+ a second, 0 s left", err)
    assert load_rate(out).source == f"engine {ENGLISH}"
    assert len((tmp_path / "rate.yaml.measured.jsonl").read_text("utf-8").splitlines()) == 41


# ---- the engine's command; a small program of our own speaks here

PROGRAM = """#!{python}
import array, sys, time, wave
from pathlib import Path
wav, text = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else sys.stdin.read()
with open(Path(__file__).with_name("said.txt"), "a", encoding="utf-8") as file:
    file.write(text + "\\n")
if "SLOW" in sys.argv[3:]:
    time.sleep(0.1)
if "bad" in text:
    sys.exit("this word cannot be said")
if "mute" not in text:
    with wave.open(wav, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(array.array("h", [9000] * (800 * len(text.strip()))).tobytes())
"""


@pytest.fixture
def engine(tmp_path):
    """A program that makes 0.1 s of sound a character, and writes down what it was given."""
    program = tmp_path / "my engine.py"
    program.write_text(PROGRAM.format(python=sys.executable), "utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def said(engine):
    return engine.with_name("said.txt").read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    ("ending", "given"),
    [
        ("{wav} {text}", "买3个; rm -rf $HOME {wav}"),
        ("{wav} {spoken}", "买三个; rm -rf $HOME {wav}"),
        ("{wav}", "买3个; rm -rf $HOME {wav}"),
    ],
)
def test_how_the_text_is_given(engine, tmp_path, ending, given):
    command = parse_command(f"'{engine}' {ending}")
    speak(command, "买3个; rm -rf $HOME {wav}", "zh", tmp_path / "a b.wav")
    assert said(engine) == [given]


def test_a_text_that_looks_like_an_option(engine, tmp_path):
    assert speak(parse_command(f"'{engine}' {{wav}} {{text}}"), "-h", "en", tmp_path / "a.wav") > 0
    assert said(engine) == [" -h"]


def test_texts_that_cannot_be_spoken_do_not_stop_the_others(engine, tmp_path):
    lines = []
    template = f"'{engine}' {{wav}} {{text}}"
    texts = ["good", "bad", "mute", "good", "fine"]
    seconds, failed = measure(template, texts, "en", tmp_path / "m.jsonl", lines.append)
    assert seconds == {"good": pytest.approx(0.4), "fine": pytest.approx(0.4)}
    assert "ended with code 1: this word cannot be said" in failed["bad"]
    assert "wrote no file at {wav}" in failed["mute"]
    assert any(line.startswith("failed: 'bad'") for line in lines) and "measured 4/4 texts" in lines[-1]


def test_what_is_measured_is_not_measured_again(engine, tmp_path):
    journal = tmp_path / "m.jsonl"
    template = f"'{engine}' {{wav}} {{text}}"
    first, _ = measure(template, ["one", "two"], "en", journal, lambda line: None)
    with journal.open("a", encoding="utf-8") as file:
        file.write('{"engine": "cut off in the midd')
    both, _ = measure(template, ["two", "one", "three"], "en", journal, lambda line: None)
    assert said(engine) == ["one", "two", "three"]
    assert both | first == both and len(both) == 3
    measure(template, ["three"], "en", journal, lambda line: None)
    measure(template + " x", ["three"], "en", journal, lambda line: None)  # another command
    measure(template, ["three"], "zh", journal, lambda line: None)
    assert said(engine) == ["one", "two", "three", "three", "three"]


def test_a_killed_measurement_goes_on(engine, tmp_path):
    texts = [f"text number {number}" for number in range(30)]
    (tmp_path / "texts.txt").write_text("\n".join(texts), "utf-8")
    template = f"'{engine}' {{wav}} {{text}} SLOW"
    words = [sys.executable, "-c", "from videonarrator.cli import main; main()", "calibrate"]
    words += ["--engine", template, "--texts", str(tmp_path / "texts.txt"), "--language", "en"]
    words += ["--out", str(tmp_path / "rate.yaml")]
    journal = tmp_path / "rate.yaml.measured.jsonl"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = journal.read_bytes().count(b"\n")
    assert 3 <= done < len(texts) and not (tmp_path / "rate.yaml").exists()
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["pairs"] == len(texts)
    assert f"{done} texts are measured already" in result.stderr
    assert len(said(engine)) <= len(texts) + 1  # the one that was being spoken


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("espeak {text}", "write {wav} where the audio file goes"),
        ("", "write {wav} where"),
        ("'espeak {wav}", "No closing quotation; for example --engine"),
        ("no-such-program -w {wav}", "there is no program 'no-such-program'"),
    ],
)
def test_commands_that_are_none(template, error):
    with pytest.raises(NarratorError, match=re.escape(error)):
        parse_command(template)
