"""`infer` over many videos: one that is broken, what is flagged, and what a finished video is known by."""

import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch
from cli_world import ROOT, read, run, succeed
from many_videos import finished, make_many, spoil
from safetensors.torch import load_file, save_file

from metrics.__main__ import main as score
from videonarrator.checkpoint import DESCRIPTION
from videonarrator.cli import inference
from videonarrator.cli.generation_log import digest_of
from videonarrator.cli.processes import shares
from videonarrator.settings import DecodingSettings, as_published
from videonarrator.speech import default_rate, read_rate

QUICK = ("length=prompt", "free_labels=true", "attempts=1", "max_new_tokens=4")


@pytest.fixture(scope="module")
def many(world, tmp_path_factory):
    return make_many(world, tmp_path_factory.mktemp("many") / "many", 50)


@pytest.fixture(scope="module")
def whole(many, tmp_path_factory):
    """A run over all of them."""
    out = tmp_path_factory.mktemp("whole")
    assert succeed("infer", *many.options(out), *QUICK).result["clips"] == 75
    return out


# -------------------- broken videos


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("no numbers", "no numbers"),
        ("cut off", "is missing or not as it was written"),
        ("missing", "is missing or not as it was written"),
    ],
)
def test_one_broken_video_among_fifty(many, whole, tmp_path, how, reason):
    """The others are done, and what is written of them is the same."""
    spoil(many, tmp_path / "features", "v23", how)
    done = run("infer", *many.options(tmp_path / "out", tmp_path / "features"), *QUICK)
    assert done.code == 3 and list(done.result["failed"]) == ["v23"]
    assert "v23" in done.result["failed"]["v23"] and reason in done.result["failed"]["v23"]
    assert [line for line in done.err.splitlines() if line.startswith("failed")] == [
        f"failed: {done.result['failed']['v23']}"
    ]
    expected = read(whole / "output.json")
    found = read(tmp_path / "out" / "output.json")
    assert list(found) == [key for key in expected if not key.startswith("v23_")]
    assert found == {key: expected[key] for key in found}
    assert finished(tmp_path / "out") == finished(whole) - {"v23"} and len(finished(whole)) == 50

    again = succeed("infer", *many.options(tmp_path / "out"), *QUICK)  # with whole features
    assert "narrated 1/1 videos" in again.err
    assert (tmp_path / "out/output.json").read_bytes() == (whole / "output.json").read_bytes()


def test_features_that_go_while_it_runs(many, whole, tmp_path, monkeypatch):
    """They are whole when all is looked at, and gone when their video's turn comes."""
    spoil(many, tmp_path / "features", "v23", "missing")
    monkeypatch.setattr(inference, "unusable", lambda *words: {})
    done = run("infer", *many.options(tmp_path / "out", tmp_path / "features"), *QUICK)
    assert done.code == 3 and list(done.result["failed"]) == ["v23"]
    assert "narrated 50/50 videos" in done.err and len(finished(tmp_path / "out")) == 49


@pytest.mark.parametrize("how", ["no numbers", "missing"])
def test_nothing_but_broken_videos(world, tmp_path, how):
    few = make_many(world, tmp_path / "few", 3)
    for index in range(3):
        spoil(few, tmp_path / "features", f"v{index:02d}", how)
    done = run("infer", *few.options(tmp_path / "out", tmp_path / "features"), *QUICK)
    assert done.code == 2 and done.out == "" and done.err.count("failed:") == 3
    assert not (tmp_path / "out" / "output.json").exists()


# -------------------- what is written says what is wrong with it


@pytest.fixture(scope="module")
def silent(many, tmp_path_factory):
    """The checkpoint with an output layer of zeros: all tokens are equally likely, the first says nothing."""
    folder = tmp_path_factory.mktemp("silent") / "checkpoint"
    shutil.copytree(many.checkpoint, folder)
    tensors = load_file(folder / "trained.safetensors")
    tensors["lm_head.weight"] = torch.zeros_like(tensors["lm_head.weight"])
    save_file(tensors, folder / "trained.safetensors", metadata={"format": "pt"})
    described = read(folder / DESCRIPTION)
    described["backbone"] = str((many.checkpoint / described["backbone"]).resolve())
    described["sha256"].pop("trained.safetensors")
    (folder / DESCRIPTION).write_text(json.dumps(described), "utf-8")
    return folder


@pytest.fixture(scope="module")
def three(world, silent, tmp_path_factory):
    """Three videos for it, of four clips."""
    return replace(make_many(world, tmp_path_factory.mktemp("three") / "few", 3), checkpoint=silent)


def test_empty_narrations_are_flagged(three, tmp_path):
    done = run("infer", *three.options(tmp_path), *QUICK)
    assert done.code == 3 and done.result["failed"] == {} and done.result["rewritten"] == 0
    output = read(tmp_path / "output.json")
    assert len(output) == 4 and done.result["flagged"] == {key: ["empty"] for key in output}
    for entry in output.values():
        assert list(entry) == ["gt", "label", "out_label", "0.1", "flaws"]
        assert (entry["0.1"], entry["flaws"]) == ("", ["empty"])
    assert read(tmp_path / "scripts/v01/script.json")["lines"][1]["flaws"] == ["empty"]
    notes = (tmp_path / "scripts/v01/script.md").read_text("utf-8")
    assert "Look at clip 2, its narration is flawed: empty." in notes


def test_empty_narrations_are_written_again(three, tmp_path):
    """Drawn, this time; with all tokens equally likely, there are letters among them."""
    done = run("infer", *three.options(tmp_path), *QUICK, "attempts=3", "max_new_tokens=20")
    assert done.result["rewritten"] == 4
    assert not any("empty" in flaws for flaws in done.result["flagged"].values())
    assert done.code == 0


def test_the_published_form_has_no_flags(three, tmp_path):
    done = succeed("infer", *three.options(tmp_path), "--compat", "upstream", "max_new_tokens=4")
    assert done.result["flagged"]
    for entry in read(tmp_path / "output.json").values():
        assert list(entry) == ["gt", "label", "out_label", "0.1"] and entry["0.1"] == ""
    assert read_settings(tmp_path) == replace(as_published(DecodingSettings()), max_new_tokens=4)


def read_settings(out):
    return inference.load_config(DecodingSettings, out / "decoding.yaml")


def test_scores_do_not_depend_on_flags(whole, tmp_path, capsys):
    output = read(whole / "output.json")
    scores = []
    for flaws in ({}, {"flaws": ["repeats"]}):
        plain = {key: {n: v for n, v in entry.items() if n != "flaws"} for key, entry in output.items()}
        file = tmp_path / "output.json"
        file.write_text(json.dumps({key: entry | flaws for key, entry in plain.items()}), "utf-8")
        metrics = ("--metrics", "repetition,label_accuracy,bleu")
        assert score([str(file), *metrics, "--out", str(tmp_path / "eval")]) == 0
        scores.append(json.loads(capsys.readouterr().out)["scores"])
    assert scores[0] == scores[1]


# -------------------- settings, digests, shares


def test_logs_of_many_processes_are_read_and_cut_off_lines_are_not(many, whole, tmp_path):
    lines = (whole / "generations.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "generations.0.jsonl").write_bytes(b"".join(lines[:20]))
    (tmp_path / "generations.11.jsonl").write_bytes(b"".join(lines[20:-1]))
    cut = next(place for place, byte in enumerate(lines[-1]) if byte > 127) + 1  # within a character
    (tmp_path / "generations.jsonl").write_bytes(lines[-1][:cut])
    (tmp_path / "generations_label.jsonl").write_bytes(lines[-1])  # another run's
    for told in ("narrated 1/1 videos", ""):
        done = succeed("infer", *many.options(tmp_path), *QUICK)
        assert told in done.err and ("narrated" in done.err) == bool(told)
        assert (tmp_path / "output.json").read_bytes() == (whole / "output.json").read_bytes()


def test_compat_has_its_own_defaults(tmp_path):
    """What a file or a word says, wins."""
    file = tmp_path / "mine.yaml"
    file.write_text("attempts: 3\nlength: constrained\n", "utf-8")
    published = as_published(DecodingSettings())
    assert inference._settings(None, "none", []) == DecodingSettings()
    assert inference._settings(None, "upstream", []) == published
    assert inference._settings(None, "upstream", ["windows=true"]) == replace(published, windows=True)
    mine = replace(published, attempts=3, length="constrained")
    assert inference._settings(str(file), "upstream", []) == mine
    assert inference._settings(str(file), "upstream", ["attempts=2"]) == replace(mine, attempts=2)


def test_the_published_settings_file_says_what_compat_means():
    told = inference._settings(str(ROOT / "configs/infer_zh.yaml"), "none", [])
    assert told == as_published(told) and not told.greedy


def test_a_finished_video_is_known_by_all_that_can_change_it(many):
    def digest(offered=False, precision="float32", rate=None, checkpoint=many.checkpoint, **changed):
        settings = replace(DecodingSettings(), **changed)
        return digest_of(settings, offered, precision, checkpoint, read_rate(rate, "zh"))

    changed = {name: another(value) for name, value in vars(DecodingSettings()).items() if name != "batch"}
    digests = {digest(**{name: value}) for name, value in changed.items()}
    digests |= {digest(), digest(offered=True), digest(precision="bfloat16"), digest(rate="5")}
    assert len(digests) == len(changed) + 4
    assert digest(batch=5) == digest()


def another(value):
    """Another value than a setting has, of its kind."""
    kinds = {bool: lambda: not value, str: lambda: "prompt", list: lambda: ["引导购买"]}
    return kinds.get(type(value), lambda: (value or 0) + 1)()


def test_other_checkpoints_give_other_digests(many, silent):
    made = (DecodingSettings(), False, "float32")
    digests = {digest_of(*made, one, default_rate("zh")) for one in (many.checkpoint, silent)}
    assert len(digests) == 2


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_shares_are_whole_and_even(number):
    work = {f"v{index}": 1 + (7919 * index) % 97 for index in range(40)}
    shared = shares(list(work), work.__getitem__, number)
    assert len(shared) == number and sorted(itertools.chain(*shared)) == sorted(work)
    for share in shared:
        assert share == [video for video in work if video in share]
    loads = [sum(map(work.__getitem__, share)) for share in shared]
    assert max(loads) - min(loads) <= max(work.values())
    assert shares(list(work), work.__getitem__, number) == shared
