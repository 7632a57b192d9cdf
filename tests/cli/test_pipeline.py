"""The commands one after the other, on rendered videos: what they write and print, and how they go on."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
from cli_world import HELD_OUT, ROOT, VIDEOS, files, read, run, start, states, succeed
from PIL import Image

from data_process.feature_store import FeatureStore
from data_process.frames import read_frames
from data_process.shots import read_cuts
from data_process.video_file import decode_pictures, probe
from metrics.__main__ import main as score
from videonarrator.schema import output_key
from videonarrator.speech import fit_of
from videonarrator.storyline import SCRIPT_LABELS
from videonarrator.version import VERSION

LISTS = ("training_data", "train", "test", "train_shots", "test_shots")
VERBS = ("cut", "extract", "stills", "prepare", "train", "infer", "narrate", "sample", "sample render")


# -------------------- what each verb writes


def test_render(made):
    world = made.world
    assert files(world.videos) == {f"{video}.mp4" for video in VIDEOS}
    annotated = read(world.annotations)
    for video in VIDEOS:
        info = probe(world.videos / f"{video}.mp4")
        assert info.duration_s == annotated[f"{video}.mp4"]["frames"][-1]["time"][1]
    assert made.runs["render"].result == {"out": str(world.videos), "videos": len(VIDEOS), "failed": {}}


def test_cut(made):
    world = made.world
    assert files(world.cuts) == {f"{video}.{kind}" for video in VIDEOS for kind in ("json", "csv")}
    annotated = read(world.annotations)
    for video in VIDEOS:
        times = [clip["time"] for clip in annotated[f"{video}.mp4"]["frames"]]
        for kind in ("json", "csv"):
            clips = read_cuts(world.cuts / f"{video}.{kind}", times[-1][1])
            assert [[clip.start, clip.end] for clip in clips] == [pytest.approx(t, abs=0.2) for t in times]
    clips = sum(len(video["frames"]) for video in annotated.values())
    result = made.runs["cut"].result
    assert result == {"out": str(world.cuts), "videos": 6, "kept": 0, "clips": clips, "failed": {}}


def test_extract(made):
    world = made.world
    assert files(world.features) == {"manifest.json", *(f"{video}.safetensors" for video in VIDEOS)}
    store = FeatureStore.open(world.features)
    annotated = read(world.annotations)
    for video in VIDEOS:
        numbers, frames = store.read(video)
        seconds = int(annotated[f"{video}.mp4"]["frames"][-1]["time"][1])
        assert numbers.tolist() == list(range(1, seconds + 1)) and frames.shape == (seconds, 4, 16)
    assert made.runs["extract"].result == {"out": str(world.features), "videos": 6, "failed": {}}


def test_prepare(made):
    world = made.world
    expected = {f"{name}.json" for name in (*LISTS, "prepare")} | {"train_ids.txt", "test_ids.txt"}
    expected |= {f"clips/{name}" for name in ("manifest.json", *(f"{video}.safetensors" for video in VIDEOS))}
    assert files(world.prepared) == expected
    counts = {name: len(read(world.prepared / f"{name}.json")) for name in LISTS}
    assert made.runs["prepare"].result["samples"] == counts
    assert counts["test"] == len(HELD_OUT) and counts["training_data"] == len(VIDEOS)


def test_train(made):
    world = made.world
    made_of = {"narrator.json", "prompt.yaml", "trained.safetensors", "tokenizer", "adapter"}
    assert {path.name for path in world.checkpoint.iterdir()} == made_of
    assert made.runs["train"].out == f"{world.checkpoint}\n"
    assert {"checkpoint", "config.yaml", "env.json", "train_log.jsonl", "loss_curve.png"} <= {
        path.name for path in world.training.iterdir()
    }
    log = [json.loads(line) for line in (world.training / "train_log.jsonl").read_text("utf-8").splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2]


def test_infer(made):
    world = made.world
    results = {"output.json", "generations.jsonl", "decoding.yaml", "env.json"}
    scripts = {f"scripts/{video}/script.{kind}" for video in HELD_OUT for kind in ("json", "md")}
    assert files(world.inferred) == results | scripts
    annotated = read(world.annotations)
    clips = {
        output_key(video, index): clip
        for video in HELD_OUT
        for index, clip in enumerate(annotated[f"{video}.mp4"]["frames"])
    }
    output = read(world.inferred / "output.json")
    assert list(output) == list(clips)
    for key, entry in output.items():
        assert [name for name in entry if name != "flaws"] == ["gt", "label", "out_label", "0.1"]
        assert (entry["gt"], entry["label"]) == (clips[key]["new_text"], clips[key]["label"])
        assert isinstance(entry["out_label"], str) and isinstance(entry["0.1"], str)
    result = made.runs["infer"].result
    assert 0 <= result.pop("rewritten") <= len(clips)
    assert sum(result.pop("fit").values()) == len(clips)
    assert result == {
        "output": str(world.inferred / "output.json"), "videos": 2, "clips": len(clips), "skipped": {},
        "flagged": {key: entry["flaws"] for key, entry in output.items() if "flaws" in entry}, "failed": {},
    }  # fmt: skip
    log = (world.inferred / "generations.jsonl").read_text("utf-8").splitlines()
    assert sorted(json.loads(line)["video"] for line in log) == list(HELD_OUT)


def test_infer_with_offered_labels(made, tmp_path):
    result = succeed(*made.world.infer(tmp_path, "--offered-label")).result
    assert result["output"] == str(tmp_path / "output_label.json")
    assert {path.name for path in tmp_path.iterdir()} == {
        "output_label.json", "generations_label.jsonl", "decoding.yaml", "env.json", "scripts",
    }  # fmt: skip
    output = read(tmp_path / "output_label.json")
    assert all(entry["out_label"] == entry["label"] for entry in output.values())
    assert output.keys() == read(made.world.inferred / "output.json").keys()


def test_scores_of_the_output(world, tmp_path, capsys):
    output = world.inferred / "output.json"
    assert score([str(output), "--annotations", str(world.annotations), "--out", str(tmp_path)]) == 0
    assert files(tmp_path) == {"results.json", "samples.jsonl", "report.md"}
    assert {"bleu_4", "cider", "label_accuracy"} <= json.loads(capsys.readouterr().out)["scores"].keys()


def test_narrate(made):
    world, done = made.world, made.runs["narrate"]
    assert files(world.narrated) == {
        "script.json", "script.md", "decoding.yaml", "speaking_rate.yaml", "env.json",
    }  # fmt: skip
    script = read(world.narrated / "script.json")
    assert script["video_id"] == "sample53" and script["skipped"] == {}
    assert script["product"]["info"] == "材质：不锈钢、双层真空\n功效：全天保温"
    assert [line["clip"] for line in script["lines"]] == [0, 1, 2]
    for line in script["lines"]:
        seconds = line["end"] - line["start"]
        assert line["high"] == int(6 * seconds) and line["low"] == line["high"] - 6
        assert line["written"] == len(line["text"])
        assert line["in_range"] == (line["low"] <= line["written"] <= line["high"])
        assert line["seconds"] > 0 and line["fit"] == fit_of(line["seconds"], seconds)
    *table, path = done.out.splitlines()
    assert path == str(world.narrated / "script.md")
    assert len(table) == 2 + 3 and all(row.count("|") - row.count("\\|") == 8 for row in table)
    assert "\n".join(table) in (world.narrated / "script.md").read_text("utf-8")


def test_a_storyline_of_ones_own_is_kept(world, tmp_path):
    labels = (*SCRIPT_LABELS[:2], "产品功效+引导购买")
    storyline = tmp_path / "storyline.txt"
    storyline.write_text("\ufeff# mine\n" + "\n".join(labels) + "\n", "utf-8")
    done = succeed(*world.narrate(world.videos / "sample53.mp4", tmp_path / "out", "--storyline", storyline))
    assert [row.split(" | ")[2] for row in done.out.splitlines()[2:-1]] == list(labels)
    storyline.write_text("开场\n收尾+开场\n收尾\n", "utf-8")
    words = ("--storyline", storyline, "labels=[开场,收尾]")
    done = succeed(*world.narrate(world.videos / "sample53.mp4", tmp_path / "own", *words))
    assert [row.split(" | ")[2] for row in done.out.splitlines()[2:-1]] == ["开场", "收尾+开场", "收尾"]
    done = succeed(*world.narrate(world.videos / "sample53.mp4", tmp_path / "two", "labels=[开场,收尾]"))
    written = {row.split(" | ")[2] for row in done.out.splitlines()[2:-1]}
    assert written <= {"开场", "收尾", "开场+收尾", "收尾+开场"}


def test_progress_is_on_stderr(made):
    wanted = {
        "render": "rendered 6/6", "cut": "cut 6/6 videos", "extract": "features of 6/6 videos",
        "train": "step 2/2", "infer": "narrated 2/2 videos", "narrate": "cut sample53.mp4 into 3 clips",
    }  # fmt: skip
    for verb, words in wanted.items():
        assert words in made.runs[verb].err and words not in made.runs[verb].out


# -------------------- a second time


@pytest.mark.parametrize("verb", ["render", "cut", "extract", "prepare", "train", "infer"])
def test_a_second_run_reuses_what_is_done(world, tmp_path, verb):
    folder, words = {
        "render": (world.videos, ("sample", "render", "--data", world.data, "--out", world.videos)),
        "cut": (world.cuts, ("cut", world.videos, "--out", world.cuts)),
        "extract": (
            world.features,
            ("extract", world.videos, "--encoder", world.encoder, "--out", world.features),
        ),
        "prepare": (world.prepared, world.prepare(world.prepared)),
        "train": (world.training, ("train", "--config", world.config)),
        "infer": (world.inferred, world.infer(world.inferred)),
    }[verb]
    shutil.copytree(folder, tmp_path / "before")
    before, began = states(folder), time.monotonic()
    done = succeed(*words)
    assert time.monotonic() - began < 20  # on a busy machine; a second or less otherwise
    after = states(folder)
    assert after.keys() == before.keys()
    for name in after:
        assert (folder / name).read_bytes() == (tmp_path / "before" / name).read_bytes(), name
    costly = (".mp4", ".safetensors", ".jsonl", ".csv")
    assert {n: s for n, s in after.items() if n.endswith(costly)} == {
        n: s for n, s in before.items() if n.endswith(costly)
    }
    if verb == "cut":
        assert done.result["kept"] == 6
    if verb in ("train", "infer"):
        assert "step " not in done.err and "narrated" not in done.err


def test_what_changed_is_made_anew(world, tmp_path):
    """Other decoding settings, and another product text of one video."""
    shutil.copytree(world.inferred, tmp_path / "out")
    assert "narrated 2/2" in run(*world.infer(tmp_path / "out", "seed=5")).err
    annotated = read(world.annotations)
    annotated["sample53.mp4"]["p_name"] = "另一把伞"
    (tmp_path / "changed.json").write_text(json.dumps(annotated), "utf-8")
    done = succeed(*world.infer(tmp_path / "out", "seed=5", annotations=tmp_path / "changed.json"))
    assert "narrated 1/1 videos" in done.err and done.result["clips"] == 7


def test_cut_again_with_other_limits(world, tmp_path):
    shutil.copytree(world.cuts, tmp_path, dirs_exist_ok=True)
    result = succeed("cut", world.videos, "--out", tmp_path, "--max-seconds", "2.5").result
    assert result["kept"] == 0 and result["clips"] > 30


# -------------------- killed


@pytest.fixture(scope="module")
def all_ids(tmp_path_factory):
    path = tmp_path_factory.mktemp("ids") / "ids.txt"
    path.write_text("".join(f"{video}.mp4\n" for video in VIDEOS), "utf-8")
    return path


LONGER = "max_new_tokens=24"  # so that there is time to kill it


@pytest.fixture(scope="module")
def whole(world, all_ids, tmp_path_factory):
    """An uninterrupted run over all videos."""
    out = tmp_path_factory.mktemp("whole")
    succeed(*world.infer(out, LONGER, ids=all_ids))
    return out


def test_killed_inference_goes_on(world, all_ids, whole, tmp_path):
    log = tmp_path / "generations.jsonl"
    process = start(*world.infer(tmp_path, LONGER, ids=all_ids))
    try:
        until = time.monotonic() + 300
        while time.monotonic() < until and not (log.is_file() and log.stat().st_size):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "output.json").exists()
    finished = log.read_bytes().count(b"\n")
    assert 1 <= finished < len(VIDEOS)
    with log.open("ab") as stream:  # as if it had been killed while it wrote, in the middle of a character
        stream.write('{"digest": "x", "video": "样'.encode()[:-1])
    done = succeed(*world.infer(tmp_path, LONGER, ids=all_ids))
    assert f"narrated 1/{len(VIDEOS) - finished} videos" in done.err
    assert read(tmp_path / "output.json") == read(whole / "output.json")
    assert files(tmp_path) == files(whole)


def test_torn_last_line_of_the_log(world, all_ids, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    log = tmp_path / "generations.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    done = succeed(*world.infer(tmp_path, LONGER, ids=all_ids))
    assert "narrated 1/1 videos" in done.err
    assert read(tmp_path / "output.json") == read(whole / "output.json")
    again = succeed(*world.infer(tmp_path, LONGER, ids=all_ids))
    assert "narrated" not in again.err


def test_an_unfinished_video_is_rendered_anew(world, tmp_path):
    shutil.copytree(world.videos, tmp_path, dirs_exist_ok=True)
    video = tmp_path / "sample39.mp4"
    pictures, info = _pictures(video), probe(video)
    video.rename(tmp_path / "sample39.mp4.partial")  # what a kill leaves
    succeed("sample", "render", "--data", world.data, "--out", tmp_path)
    assert probe(video) == info and files(tmp_path) == files(world.videos)
    assert _pictures(video) == pictures  # the pixels; the file may differ by a byte or two


def _pictures(video):
    return [picture.to_ndarray(format="rgb24").tobytes() for _, picture in decode_pictures(video)]


def test_stills_go_on_and_name_what_fails(world, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    out = tmp_path / "stills"
    done = run("stills", world.videos / "sample39.mp4", bad, "--out", out)
    assert done.code == 3 and list(done.result["failed"]) == [str(bad)] and "bad.mp4" in done.err
    kept = states(out)
    seconds = probe(world.videos / "sample39.mp4").n_frames
    assert sorted(kept) == [f"sample39/sample39_{k:03d}.jpg" for k in range(1, seconds + 1)]
    succeed("stills", world.videos / "sample39.mp4", "--out", out)
    assert states(out) == kept
    first, last = (Image.open(out / f"sample39/sample39_{k:03d}.jpg") for k in (1, seconds))
    shown = read_frames(world.videos / "sample39.mp4", [1, seconds])
    for picture, still, other in ((first, shown[1], shown[seconds]), (last, shown[seconds], shown[1])):
        own, foreign = (abs(np.asarray(picture).astype(int) - s).mean() for s in (still, other))
        assert own < 3 < foreign


def test_english_samples_are_rendered(world, tmp_path):
    for name in ("annotations_en.json", "scenes_en.json"):
        stored = json.loads((ROOT / "data/sample" / name).read_text("utf-8"))
        two = dict(list(stored.items())[:2])
        (tmp_path / name).write_text(json.dumps(two), "utf-8")
    run = succeed("sample", "render", "--english", "--data", tmp_path, "--out", tmp_path / "videos")
    assert run.result["videos"] == 2 and run.result["failed"] == {}
    annotations = json.loads((tmp_path / "annotations_en.json").read_text("utf-8"))
    for name, video in annotations.items():
        assert probe(tmp_path / "videos" / name).duration_s == video["frames"][-1]["time"][1]


# -------------------- the command itself


def test_the_console_command(world, tmp_path):
    """From another folder, as a process of its own."""
    process = start("cut", world.videos / "sample39.mp4", "--out", tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["clips"] == 3 and err == "cut 1/1 videos\n"


def test_version():
    done = succeed("--version")
    assert (done.out, done.err) == (f"videonarrator {VERSION}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb):
    done = succeed(*verb.split(), "--help")
    assert done.out.startswith(f"Usage: videonarrator {verb} ") and done.err == ""
    assert "--help" in done.out


def test_without_words_the_help_is_shown():
    assert "Commands:" in succeed().out


def test_interrupted(world, tmp_path, monkeypatch):
    from videonarrator.cli import data

    def interrupted(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "cut", interrupted)
    done = run("cut", world.videos, "--out", tmp_path)
    assert done.code == 130 and done.out == "" and "interrupted: what is done is kept" in done.err
