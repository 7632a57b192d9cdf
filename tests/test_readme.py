"""Every command of the README is run; only sizes and places are changed, so that it takes minutes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def commands():
    """The commands of the README's bash blocks, continued lines joined, remarks dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*$", "", line).strip() for line in lines if line.strip()]


def run(command, folder, environment=None):
    return subprocess.run(
        command,
        cwd=folder,
        shell=isinstance(command, str),
        executable="/bin/bash" if isinstance(command, str) else None,
        capture_output=True,
        text=True,
        env={**os.environ, "VIRTUAL_ENV": sys.prefix, **(environment or {})},
    )


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The quickstart itself, its training cut down to a few steps."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    done = run(["bash", "scripts/quickstart.sh", str(folder), "optimization.epochs=0.3"], ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


def test_quickstart_prints_scores_and_paths(quickstart):
    folder, done = quickstart
    results = json.loads((folder / "eval/results.json").read_text("utf-8"))["metrics"]
    for name in ("bleu_4", "cider", "label_accuracy", "length_in_range", "repetition"):
        assert name in done.stdout and results[name]["value"] is not None
    for path in ("held_out/output.json", "eval/report.md", "narrated/script.md"):
        assert str(folder / path) in done.stdout and (folder / path).is_file()
    output = json.loads((folder / "held_out/output.json").read_text("utf-8"))
    assert len(output) == 52 and len(list((folder / "cuts").glob("*.json"))) == 60


def test_a_second_quickstart_reuses_everything(quickstart):
    folder, _ = quickstart
    kept = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    kept |= {p: p.stat().st_mtime_ns for p in folder.rglob("*.mp4")}
    again = run(["bash", "scripts/quickstart.sh", str(folder), "optimization.epochs=0.3"], ROOT)
    assert again.returncode == 0, again.stderr[-3000:]
    assert kept == {p: p.stat().st_mtime_ns for p in kept}


def published_files(folder, upstream, features):
    """What an owner of the published files has: base model, checkpoint, features and lists."""
    import numpy as np

    folder.mkdir()
    (folder / "baichuan-7b").symlink_to(upstream / "base")
    (folder / "annotations.json").symlink_to(upstream / "all_video_data.json")
    for name in ("checkpoint", "instruction.txt", "test_ids.txt"):
        (folder / name).symlink_to(upstream / name)
    (folder / "features").mkdir()
    for video_id, frames in features.items():
        for number, frame in frames.items():
            np.save(folder / "features" / f"{video_id}_{number:03d}.jpg.npy", frame.numpy())


def lavis_files(folder, fixture):
    """LAVIS's two files, at the size of the reference data; returns the options its small size needs."""
    import torch
    from safetensors.torch import load_file

    folder.mkdir()
    state = load_file(fixture / "lavis_state_dict.safetensors")
    vit = {name.removeprefix("visual_encoder."): t for name, t in state.items() if name.startswith("visual_")}
    torch.save(vit, folder / "eva_vit_g.pth")
    rest = {name: t for name, t in state.items() if not name.startswith("visual_encoder.")}
    torch.save({"model": rest}, folder / "blip2_pretrained.pth")
    config = json.loads((fixture / "config.json").read_text())
    heads = config["vit"]["num_heads"], config["qformer"]["num_attention_heads"]
    return f" --vit-heads {heads[0]} --qformer-heads {heads[1]}"


def test_every_other_command_runs(quickstart, tmp_path, shared, upstream, upstream_features):
    """In a folder laid out as a reader's would be: a few videos of one's own, and small models for large
    ones.
    """
    folder, _ = quickstart
    for name in ("configs", "data", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/sample").symlink_to(folder)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/baichuan-7b").symlink_to(ROOT / "data/sample/models/backbone")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    annotations = json.loads((ROOT / "data/sample/annotations.json").read_text("utf-8"))
    mine = {name: annotations[name] for name in ("sample01.mp4", "sample02.mp4", "sample49.mp4")}
    (tmp_path / "annotations.json").write_text(json.dumps(mine, ensure_ascii=False), "utf-8")
    (tmp_path / "test_ids.txt").write_text("sample49.mp4\n")
    (tmp_path / "videos").mkdir()
    for name in mine:
        (tmp_path / "videos" / name).symlink_to(folder / "videos" / name)
    published_files(tmp_path / "published", upstream, upstream_features)
    heads = lavis_files(tmp_path / "published/lavis", shared / "data/lavis_fixture")
    ran = []
    for command in commands():
        if command in ("bash scripts/quickstart.sh", "bash scripts/test.sh"):
            continue  # the quickstart ran above; the other is what runs this test
        smaller = command.replace("bash scripts/", f"bash {ROOT}/scripts/")
        smaller = smaller.replace("Salesforce/blip2-opt-2.7b", "data/sample/models/blip2")
        smaller = smaller.replace(" --device cuda", "")
        for name, tiny in (
            ("OFA-Sys/chinese-clip-vit-base-patch16", "chinese-clip"),
            ("hfl/chinese-roberta-wwm-ext-large", "chinese-roberta"),
        ):
            smaller = smaller.replace(name, str(shared / "data/metrics_fixture/models" / tiny))
        if " convert " in smaller:  # the name is the sample backbone's here
            smaller = smaller.replace("models/baichuan-7b", "models/converted")
            smaller += heads if " lavis " in smaller else ""
        if " train " in smaller or "train.sh" in smaller:
            smaller += " optimization.epochs=0.3 optimization.precision=fp32"
        if "measure_grounding" in smaller:
            smaller += " --rotations 1 --ids test_ids.txt"
        done = run(smaller, tmp_path, {"PYTHONPATH": str(ROOT), "VIRTUAL_ENV": sys.prefix})
        assert done.returncode == 0, f"{shlex.quote(smaller)}\n{done.stdout[-800:]}\n{done.stderr[-2000:]}"
        ran.append(command)
    assert len(ran) == 24
    scores = json.loads((tmp_path / "runs/mine/eval/results.json").read_text("utf-8"))["metrics"]
    assert all(score["ci95"] for score in scores.values() if score["value"] is not None)
    assert scores["emscore"]["n_scored"] and scores["info_sim"]["n_scored"]
    assert (tmp_path / "runs/my_video/script.md").is_file()
    published = json.loads((tmp_path / "runs/published/out/output.json").read_text("utf-8"))
    expected = json.loads((upstream / "infer/test_output.json").read_text("utf-8"))
    written = {key: entry for key, entry in expected.items() if "0.1" in entry}
    assert written and {key: published[key] for key in written} == written


def test_what_the_readme_points_at_is_there():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
    for folder in re.findall(r"^\| `([\w/]+)/` \|", README, re.M):
        assert (ROOT / folder).is_dir(), folder
