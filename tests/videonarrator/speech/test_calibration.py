"""Fitting a speaking rate, and the verb `calibrate` with recordings and annotations."""

import json
import math
import wave

import numpy as np
import pytest
from speech_texts import ROOT, narrations

from data_process.annotations import write_annotations
from videonarrator.cli import main
from videonarrator.schema import Clip, NarratorError, Product, Video
from videonarrator.speech import SpeakingRate, default_rate, load_rate, scaled, spoken_seconds
from videonarrator.speech.audio import speech_seconds
from videonarrator.speech.fitting import calibrate, fit_rate

VOICE = SpeakingRate(
    "zh", 4.0, syllable=0.21, light=0.12, latin=0.25, weak_pause=0.3, strong_pause=0.6, constant=0.2
)


def test_a_voice_that_follows_the_model_is_found(real_videos):
    texts = [text for text, _ in narrations(real_videos)]
    fitted = calibrate(texts, [spoken_seconds(text, VOICE) for text in texts], "zh", voice="v", source="s")
    assert fitted.rate.coefficients == pytest.approx(VOICE.coefficients, abs=0.03)
    assert fitted.median_error < 0.005 and fitted.within_10_percent == 1 and fitted.pairs == len(texts)
    assert (fitted.rate.voice, fitted.rate.source) == ("v", "s")


def test_wrong_pairs_pull_little(real_videos):
    texts = [text for text, _ in narrations(real_videos[:100])]
    seconds = np.array([spoken_seconds(text, VOICE) for text in texts])
    seconds[::10] *= 5
    rate = fit_rate(texts, seconds, "zh")
    errors = [abs(spoken_seconds(text, rate) / spoken_seconds(text, VOICE) - 1) for text in texts]
    assert max(errors) < 0.1 and np.median(errors) < 0.03


def test_few_pairs_give_the_default_at_their_speed():
    slow = scaled(default_rate("zh"), 3.0)
    text = "这款杯子真的好看，今天只要九元。"
    rate = fit_rate([text], [spoken_seconds(text, slow)], "zh")
    assert rate.coefficients == pytest.approx(slow.coefficients, rel=1e-6)
    alone = calibrate([text], [3.0], "zh")
    assert alone.median_error is None and alone.within_10_percent is None


@pytest.mark.parametrize(
    ("texts", "seconds", "error"),
    [
        ([], [], "no pair of text and duration"),
        (["，。"], [1.0], "'，。' has nothing to say"),
        (["好"], [0.0], "'好' takes 0 s: expected a duration greater than 0"),
        (["好"], [math.nan], "'好' takes nan s"),
    ],
)
def test_pairs_that_cannot_be_fitted(texts, seconds, error):
    with pytest.raises(NarratorError, match=error):
        fit_rate(texts, seconds, "zh")


def errors_of(rate, pairs):
    return [abs(spoken_seconds(text, rate) - seconds) for text, seconds in pairs]


def test_clip_durations_of_real_videos(real_videos):
    """Fitted on 200 videos, seen on the other 100; docs/speech.md states what this gives."""
    known, unseen = narrations(real_videos[:200]), narrations(real_videos[200:])
    rate = fit_rate(*zip(*known, strict=True), "zh")
    error = np.median(errors_of(rate, unseen))
    print(f"median error {error:.3f} s of {len(unseen)} clips")
    assert error < 0.80
    five = np.median([abs(len(text) / 5 - seconds) for text, seconds in unseen])
    speed = np.median([len(text) / seconds for text, seconds in known])
    plain = np.median([abs(len(text) / speed - seconds) for text, seconds in unseen])
    print(f"{speed:.2f} characters a second: {plain:.3f} s; 5 characters a second: {five:.3f} s")
    assert error < plain and error < 0.75 * five


def test_pauses_count_in_real_videos(real_videos):
    pairs = narrations(real_videos)
    rate = fit_rate(*zip(*pairs, strict=True), "zh")
    plain = [(text.translate(str.maketrans("", "", "，。、？！；：")), seconds) for text, seconds in pairs]
    without = fit_rate(*zip(*plain, strict=True), "zh")
    with_pauses, none = np.mean(errors_of(rate, pairs)), np.mean(errors_of(without, plain))
    print(f"mean error {with_pauses:.3f} s with pauses, {none:.3f} s without")
    assert with_pauses < none


def test_the_default_is_what_the_real_videos_give(real_videos):
    rate = scaled(fit_rate(*zip(*narrations(real_videos), strict=True), "zh"), 6.0)
    assert rate.coefficients == pytest.approx(default_rate("zh").coefficients, abs=0.001)


# ---- audio


def write_wav(path, seconds, before=0.0, after=0.0, rate=16_000, channels=1, width=2):
    """A tone with a pause in its middle, silence before and after."""
    tone = 0.5 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)
    tone[len(tone) // 3 : len(tone) // 2] = 0
    samples = np.concatenate([np.zeros(round(before * rate)), tone, np.zeros(round(after * rate))])
    levels = np.repeat(samples * (2 ** (8 * width - 1) - 1), channels).astype(f"<i{width}")
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(levels.tobytes())
    return path


@pytest.mark.parametrize("shape", [{}, {"channels": 2}, {"rate": 44_100}, {"width": 4}])
def test_silence_at_the_ends_is_not_speech(tmp_path, shape):
    path = write_wav(tmp_path / "a.wav", 1.5, before=0.7, after=1.1, **shape)
    assert speech_seconds(path) == pytest.approx(1.5, abs=0.021)


def test_other_formats(tmp_path):
    import av

    path = tmp_path / "a.flac"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=16_000, layout="mono")
        samples = np.zeros((1, 32_000), np.int16)
        samples[0, 8000:24_000] = 8000 * np.sin(np.arange(16_000) / 10)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert speech_seconds(path) == pytest.approx(1.0, abs=0.021)


def test_files_without_speech(tmp_path):
    write_wav(tmp_path / "silent.wav", 0.0, before=1.0)
    write_wav(tmp_path / "empty.wav", 0.0)
    (tmp_path / "text.wav").write_text("this is no sound")
    for name in ("silent", "empty"):
        with pytest.raises(NarratorError, match="holds no sound"):
            speech_seconds(tmp_path / f"{name}.wav")
    with pytest.raises(NarratorError, match=r"cannot read .*text\.wav as audio"):
        speech_seconds(tmp_path / "text.wav")
    with pytest.raises(NarratorError, match="no audio file"):
        speech_seconds(tmp_path / "absent.wav")


# ---- the verb


def run(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", *map(str, words)])
    out, err = capsys.readouterr()
    return ended.value.code or 0, json.loads(out) if out else None, err


def test_recordings_in_a_folder(tmp_path, capsys):
    folder = tmp_path / "voice"
    folder.mkdir()
    texts = ["这款杯子真的好看", "今天只要九元，快来买", "轻轻一按，水就出来了", "谁用谁知道"]
    for number, text in enumerate(texts):
        write_wav(folder / f"{number}.wav", spoken_seconds(text, VOICE), before=0.3, after=0.5)
        (folder / f"{number}.txt").write_text(text + "\n", "utf-8")
    out = folder / "rate.yaml"
    for _ in range(2):  # a rate that lies beside the recordings is none of them
        code, result, _ = run(capsys, "--pairs", folder, "--out", out, "--voice", "小燕")
    assert (code, result["pairs"], result["failed"], result["out"]) == (0, 4, {}, str(out))
    rate = load_rate(out)
    assert rate.voice == "小燕" and rate.source == "recordings voice"
    assert result["units_per_second"] == pytest.approx(rate.units_per_second, abs=1e-4)
    for text in texts:
        assert spoken_seconds(text, rate) == pytest.approx(spoken_seconds(text, VOICE), rel=0.12)


def test_bad_recordings_are_named_and_the_others_used(tmp_path, capsys):
    for name in ("good", "blank", "silent", "alone"):
        write_wav(tmp_path / f"{name}.wav", 0.0 if name == "silent" else 2.0, before=0.1)
        (tmp_path / f"{name}.txt").write_text("  。\n" if name == "blank" else "这款杯子真的好看", "utf-8")
    (tmp_path / "alone.txt").unlink()
    (tmp_path / "broken.mp3").write_bytes(b"no sound")
    (tmp_path / "broken.txt").write_text("好看", "utf-8")
    (tmp_path / "lonely.txt").write_text("好看", "utf-8")
    code, result, err = run(capsys, "--pairs", tmp_path, "--out", tmp_path / "out" / "rate.yaml")
    assert (code, result["pairs"]) == (3, 1)
    assert set(result["failed"]) == {"blank.wav", "silent.wav", "alone.wav", "broken.mp3", "lonely.txt"}
    assert all(f"left out: {name}: " in err for name in result["failed"])
    assert load_rate(tmp_path / "out" / "rate.yaml").units_per_second == pytest.approx(4, rel=0.01)


def test_recordings_in_a_list(tmp_path, capsys):
    write_wav(tmp_path / "a.wav", 2.0)
    write_wav(tmp_path / "b.wav", 3.0)
    listing = tmp_path / "list.tsv"
    listing.write_text("a.wav\tTake the blue mug.\nb.wav\tIt costs $5, or 30 yuan.\n", "utf-8")
    code, result, _ = run(capsys, "--pairs", listing, "--out", tmp_path / "r.yaml", "--language", "en")
    assert (code, result["pairs"], result["language"]) == (0, 2, "en")
    listing.write_text("a.wav Take the blue mug.\n", "utf-8")
    code, _, err = run(capsys, "--pairs", listing, "--out", tmp_path / "r.yaml")
    assert code == 2 and "line 1: expected <audio file><tab><text>" in err


def test_annotations(tmp_path, capsys):
    code, result, _ = run(
        capsys, "--annotations", ROOT / "data/sample/annotations.json", "--out", tmp_path / "r.yaml"
    )
    assert (code, result["pairs"]) == (0, 281)
    assert load_rate(tmp_path / "r.yaml").source == "annotations annotations.json"
    clips = (Clip(0, 2, text="这款杯子真的好看"), Clip(2, 4), Clip(4, 5, text="……"))
    write_annotations(tmp_path / "own.json", [Video("v", Product("杯"), clips)])
    code, result, _ = run(capsys, "--annotations", tmp_path / "own.json", "--out", tmp_path / "r.yaml")
    assert (code, result["pairs"], list(result["failed"])) == (3, 1, ["v, clip 3"])


def test_a_published_sample_list(shared, tmp_path, capsys):
    path = shared / "data" / "esyncvidstory_test_300.json"
    code, result, _ = run(capsys, "--annotations", path, "--out", tmp_path / "r.yaml", "--limit", "500")
    assert (code, result["pairs"]) == (0, 500)
    assert result["units_per_second"] == pytest.approx(6.3, abs=0.15) and result["median_error"] < 0.2


def test_a_sample_list_without_times(shared, tmp_path, capsys):
    samples = json.loads((shared / "data" / "esyncvidstory_test_300.json").read_text("utf-8"))[:2]
    del samples[0]["images"]
    (tmp_path / "list.json").write_text(json.dumps(samples), "utf-8")
    code, result, err = run(capsys, "--annotations", tmp_path / "list.json", "--out", tmp_path / "r.yaml")
    assert code == 3 and result["pairs"] == len(samples[1]["frames"])
    assert "does not tell when it starts and ends" in err


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "give one of --pairs"),
        (["--pairs", "x", "--annotations", "y"], "give one of --pairs"),
        (["--engine", "cat {wav}"], "--engine and --texts"),
        (["--pairs", "x", "--texts", "y"], "--engine and --texts"),
        (["--pairs", "absent"], "cannot read absent"),
        (["--annotations", "list.txt"], "--annotations list.txt: expected a JSON file"),
        (["--pairs", "x", "--language", "fr"], "no speaking rate for language 'fr'; there are zh, en"),
    ],
)
def test_wrong_words(tmp_path, monkeypatch, capsys, words, error):
    monkeypatch.chdir(tmp_path)
    code, result, err = run(capsys, *words, "--out", "rate.yaml")
    assert (code, result) == (2, None) and error in err
    assert not (tmp_path / "rate.yaml").exists()


def test_nothing_usable(tmp_path, capsys):
    (tmp_path / "voice").mkdir()
    write_wav(tmp_path / "voice" / "a.wav", 0.0)
    (tmp_path / "voice" / "a.txt").write_text("好", "utf-8")
    code, result, err = run(capsys, "--pairs", tmp_path / "voice", "--out", tmp_path / "rate.yaml")
    assert (code, result) == (2, None) and "none of 1 pairs can be used; the first, a.wav: " in err
    (tmp_path / "none").mkdir()
    code, _, err = run(capsys, "--pairs", tmp_path / "none", "--out", tmp_path / "rate.yaml")
    assert code == 2 and "holds no pairs" in err
    code, _, err = run(capsys, "--pairs", tmp_path / "voice", "--out", tmp_path)
    assert code == 2 and "is a folder: give a file" in err
