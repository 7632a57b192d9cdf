"""Mistakes in what is typed: settings, devices, files for `narrate`, folders without access, words."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_world import PRODUCT, Run, fails, files, run, save, start, succeed

from data_process.feature_store import FeatureStore

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


# -------------------- settings


def test_config_mistakes_of_train(world, tmp_path, out):
    good = world.config.read_text("utf-8")
    typo = save(tmp_path / "typo.yaml", good.replace("samples_per_step", "samples_perstep"))
    wrong_type = save(tmp_path / "type.yaml", good.replace("samples_per_step: 8", "samples_per_step: eight"))
    no_yaml = save(tmp_path / "broken.yaml", "output: [1")
    train = ("train", "--config", world.config, f"output={out}")
    for words, expected in (
        (("--config", typo), ("samples_perstep", "did you mean optimization.samples_per_step?")),
        (("--config", wrong_type), ("optimization.samples_per_step is 'eight'", "a whole number")),
        (("--config", no_yaml), (str(no_yaml), "is not valid YAML")),
        (("--config", tmp_path / "nowhere.yaml"), ("no file", "configs/ has")),
        (("--config", world.config, "model.rnk=4"), ("model.rnk", "did you mean model.rank?")),
        (("--config", world.config, "rank=4"), ("rank", "did you mean model.rank?")),
        (("--config", world.config, "model.rank=much"), ("model.rank is 'much'", "a whole number")),
        (("--config", world.config, "model.adapter=lore"), ("model.adapter", "one of lora, full")),
        (("--config", world.config, "optimization.batch_size=0"), ("must be greater than 0",)),
        (("--config", world.config, "model.rank"), ("'model.rank' is not a setting", "key=value")),
    ):
        fails(run("train", *words), *expected)
    fails(run(*train, "model.template=zn"), "no file", "zh.yaml")
    for other, expected in (("prepare.json", "is no sample list"), ("nowhere.json", "No such file")):
        fails(run(*train, f"data.samples={world.prepared / other}"), expected)
    fails(run(*train, f"data.samples={world.prepared / 'train.json'}"), "no shot_loc, shot_pos")
    assert not (out / "checkpoint").exists()


def test_backbone_mistakes_of_train(world, tmp_path, out):
    train = ("train", "--config", world.config)
    for number, backbone in enumerate((tmp_path / "nowhere", world.encoder, tmp_path)):
        fails(run(*train, f"output={out}{number}", f"model.backbone={backbone}"), str(backbone))
        assert not Path(f"{out}{number}", "checkpoint").exists()


def test_training_folder_of_other_settings(world):
    before = (world.training / "config.yaml").read_bytes()
    fails(run("train", "--config", world.config, "model.rank=3"), str(world.training), "other settings")
    assert (world.training / "config.yaml").read_bytes() == before


def test_config_mistakes_of_infer_and_narrate(world, tmp_path, out):
    for words, expected in (
        (("--config", save(tmp_path / "typo.yaml", "attempt: 2\n")), ("attempt", "did you mean attempts?")),
        (("--config", save(tmp_path / "type.yaml", "seed: many\n")), ("seed is 'many'", "a whole number")),
        (("greedi=true",), ("greedi", "did you mean greedy?")),
        (("temperature=0",), ("temperatures", "greater than 0")),
        (("attempts=0",), ("attempts", "at least 1")),
    ):
        fails(run(*world.infer(out, *words)), *expected)
        fails(run(*world.narrate(Path("nowhere.mp4"), out, *words)), *expected)
    for rate in ("0", "-2", "nan", "inf"):
        done = run(*world.narrate(world.videos / "sample39.mp4", out, "--rate", rate))
        fails(done, f"--rate is {rate}", "greater than 0")
    assert not out.exists()


def test_cut_settings(world, out):
    fails(run("cut", world.videos, "--out", out, "--detector", "magic"), "magic", "adaptive or content")
    words = ("--min-seconds", 5, "--max-seconds", 2)
    fails(run("cut", world.videos, "--out", out, *words), "min_seconds=5", "max_seconds=2")
    assert not out.exists()


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [
        pytest.param("cuda", "float32", "no CUDA device here", marks=NO_CUDA),
        pytest.param("cuda:7", "float32", "CUDA device", marks=NO_CUDA),
        ("gpu", "float32", "unknown device 'gpu'"),
        ("meta", "float32", "device meta cannot"),
        ("cpu", "half", "unknown precision 'half'"),
    ],
)
def test_devices(world, out, device, precision, words):
    options = ("--device", device, "--precision", precision)
    fails(run("extract", world.videos, "--encoder", world.encoder, "--out", out, *options), words)
    fails(run(*world.infer(out, *options)), words)
    fails(run(*world.narrate(world.videos / "sample39.mp4", out, *options)), words)
    assert not out.exists()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_on_the_cpu(world, tmp_path, precision):
    """A checkpoint trained on features of float32 narrates with others, too."""
    done = succeed(
        "extract", world.videos, "--encoder", world.encoder, "--out", tmp_path / "features",
        "--precision", precision,
    )  # fmt: skip
    assert done.result["failed"] == {}
    more = ("--precision", precision)
    succeed(*world.infer(tmp_path / "infer", *more, features=tmp_path / "features"))
    succeed(*world.narrate(world.videos / "sample39.mp4", tmp_path / "script", *more))


def test_folders_of_another_kind(world, tmp_path, out):
    clips, empty = world.prepared / "clips", tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "broken").mkdir()
    save(tmp_path / "broken" / "manifest.json", "{")
    for features, words in (
        (empty, "no manifest.json"),
        (tmp_path / "nowhere", "there is no such folder"),
        (tmp_path / "broken", "is not JSON"),
        (world.config, "no frame features in"),
    ):
        fails(run(*world.infer(out, features=features)), str(features), words)
        fails(run(*world.prepare(out, features=features)), str(features), words)
    # `infer` takes clip tensors, too; `prepare` makes them
    fails(run(*world.prepare(out, features=clips)), str(clips), "is not a manifest of frame features")
    train = ("train", "--config", world.config, f"output={out}")
    fails(run(*train, f"data.clips={world.features}"), "is not a manifest of clip tensors")
    before = (clips / "manifest.json").read_bytes()
    extract = ("extract", world.videos, "--encoder", "nowhere", "--out", clips)
    fails(run(*extract), "is not a manifest of frame features")
    assert (clips / "manifest.json").read_bytes() == before and files(out) == set()


# -------------------- what `narrate` is given


PRODUCT_MISTAKES = {
    "没有冒号": "it has no name",
    "info: {材质: 钢}\n": "it has no name",
    "name: [a, b]\n": "name is ['a', 'b'], expected text",
    "name: 杯子\ncolour: red\n": "unknown field 'colour'",
    "name: 杯子\ninfo: [钢, 铁]\n": "expected text or a mapping",
    "name: 杯子\ninfo: {材质: {里: 钢}}\n": "expected a point or a list of points",
    "name: 杯子\ninfo: {材质: []}\n": "expected a point or a list of points",
    "name: 杯子\ninfo: {保温: yes}\n": "expected a point or a list of points",
    "name: 杯子\ninfo: {材质: }\n": "expected a point or a list of points",
    "name: '一\n\n  二'\n": "line break",
    "name: a: b\n": "is not valid YAML",
}


@pytest.mark.parametrize("text", PRODUCT_MISTAKES)
def test_product_file_mistakes(world, tmp_path, out, text):
    product = save(tmp_path / "product.yaml", text)
    done = run(*world.narrate(world.videos / "sample39.mp4", out, product=product, checkpoint="nowhere"))
    message = fails(done, str(product), PRODUCT_MISTAKES[text])
    assert ("name: 云汀保温杯" in message) == ("YAML" not in message)  # an example of what is right
    assert not out.exists()


def test_product_file_of_another_kind(world, tmp_path, out):
    (tmp_path / "product.yaml").write_bytes(PRODUCT.encode("gb18030"))
    video = world.videos / "sample39.mp4"
    fails(run(*world.narrate(video, out, product=tmp_path / "product.yaml")), "is not UTF-8 text")
    fails(run(*world.narrate(video, out, product=tmp_path / "nowhere.yaml")), "No such file")
    fails(run(*world.narrate(video, out, product=video)), "is not UTF-8 text")


STORYLINE_MISTAKES = {
    "产品推荐\n产品功郊\n引导购买\n": "line 2: unknown script label '产品功郊' (did you mean 产品功效?)",
    "# nothing\n\n": "holds no label",
}


@pytest.mark.parametrize("text", STORYLINE_MISTAKES)
def test_storyline_mistakes(world, tmp_path, out, text):
    storyline = save(tmp_path / "storyline.txt", text)
    words = ("--storyline", storyline)
    done = run(*world.narrate(world.videos / "sample39.mp4", out, *words, checkpoint="nowhere"))
    fails(done, str(storyline), STORYLINE_MISTAKES[text])
    assert not out.exists()


def test_storyline_of_another_length(world, tmp_path, out):
    """Against a cut list before anything is done; against the cuts found before a model is loaded."""
    storyline = save(tmp_path / "storyline.txt", "产品推荐\n引导购买\n")
    cuts = save(tmp_path / "cuts.json", [[0, 2], [2, 4], [4, 6]])
    video, words = world.videos / "sample39.mp4", ("--storyline", storyline)
    done = run(*world.narrate(video, out, *words, "--cuts", cuts, checkpoint="nowhere"))
    fails(done, str(storyline), "2 labels", str(cuts), "3 clips", "one label a clip")
    done = run(*world.narrate(video, out, *words, "--encoder", "nowhere"))
    fails(done, str(storyline), "2 labels", "cut into 3 clips (0.0-")
    assert files(out) == set()


CUT_MISTAKES = {
    "[[0, 2], [1, 3]]": ("clip 2", "start 1 lies before the end 2 of clip 1"),
    "[[0, 2], [5, 3]]": ("clip 2", "end 3 is not after start 5"),
    "[[0, 60]]": ("clip 1", "end 60 lies outside the video (0 to 9 s)"),
    "[[0, 'x']]": ("is not JSON",),
    '[[0, "x"]]': ("clip 1", "end 'x' is not a number"),
    '[{"start": 0}]': ("clip 1", "end is missing"),
    '[{"start": 0, "end": 2, "label": "好"}]': ("clip 1", "unknown script label '好'"),
    "[]": ("holds no clip",),
    '{"shots": []}': ("is no cut list",),
}


@pytest.mark.parametrize("text", CUT_MISTAKES)
def test_cut_list_mistakes(world, tmp_path, out, text):
    cuts = save(tmp_path / "cuts.json", text)
    done = run(*world.narrate(world.videos / "sample39.mp4", out, "--cuts", cuts, checkpoint="nowhere"))
    fails(done, str(cuts), *CUT_MISTAKES[text])
    assert not out.exists()


def test_csv_cut_list_without_its_columns(world, tmp_path, out):
    cuts = save(tmp_path / "cuts.csv", "from,to\n0,2\n")
    fails(run(*world.narrate(world.videos / "sample39.mp4", out, "--cuts", cuts)), str(cuts), "start,end")


# -------------------- folders that cannot be written


def unwritable_folders(tmp_path):
    file = save(tmp_path / "file.txt", "a file")
    system = [Path(root, "videonarrator") for root in ("/proc", "/sys") if Path(root).is_dir()]
    return [file / "sub", file, *system]


def test_output_folder_that_cannot_be_written(world, tmp_path):
    """Said before anything that takes long: the models that are named are not there."""
    video = world.videos / "sample39.mp4"
    for out in unwritable_folders(tmp_path):
        for words in (
            ("sample", "render", "--data", world.data, "--out", out),
            ("cut", world.videos, "--out", out),
            ("extract", world.videos, "--encoder", "nowhere", "--out", out),
            world.prepare(out),
            ("train", "--config", world.config, f"output={out}", "model.backbone=nowhere"),
            world.infer(out, "--backbone", "nowhere"),
            world.narrate(video, out, "--encoder", "nowhere"),
        ):
            done = run(*words)
            fails(done, "cannot write", str(out))
            assert len(done.err.splitlines()) == 1
    assert (tmp_path / "file.txt").read_text() == "a file"


@pytest.mark.skipif(
    os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere, and no setpriv here"
)
def test_read_only_folder(world, tmp_path):
    """As an ordinary user meets it: root gives up the right to write everywhere."""
    folder = tmp_path / "readonly"
    folder.mkdir()
    folder.chmod(0o555)
    ordinary = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    for words in (("cut", world.videos, "--out", folder), world.infer(folder / "out")):
        process = start(*words, before=ordinary)
        out, err = process.communicate(timeout=300)
        fails(Run(process.returncode, out, err), "cannot write", str(folder))
    assert list(folder.iterdir()) == []


def test_full_disk(world, out, monkeypatch):
    """A write that fails in the middle leaves no file that looks whole."""
    write = Path.write_bytes

    def full(path, data):
        write(path, data[: len(data) // 2])
        if len(data) > 1000:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    done = run("extract", world.videos / "sample39.mp4", "--encoder", world.encoder, "--out", out)
    assert done.code == 2 and "Traceback" not in done.err
    assert f"failed: cannot write {out / 'sample39.safetensors'}: No space left on device" in done.err
    assert files(out) == {"manifest.json"} and FeatureStore.open(out).ids == []


# -------------------- wrong words


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["cut"], "Missing argument"),
        (["cut", "a.mp4"], "--out"),
        (["cut", "a.mp4", "--out", "o", "--max-seconds", "long"], "--max-seconds"),
        (["cut", "a.mp4", "--out", "o", "--colour"], "No such option: --colour"),
        (["extract", "a.mp4", "--encoder", "e", "--out", "o", "--batch-size", "0"], "--batch-size"),
        (["train"], "--config"),
        (["narrate", "a.mp4", "--product", "p.yaml", "--out", "o"], "--checkpoint"),
    ],
    ids=" ".join,
)
def test_wrong_words(words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = fails(run(*words), expected)
    assert message.startswith("Usage: videonarrator") and files(tmp_path) == set()


def test_numbers_that_are_none(world, out, monkeypatch):
    """An encoder whose features overflow: the video is reported, not stored."""
    from data_process.qformer import FrameEncoder

    def overflow(encoder, stills, batch_size=8):
        return torch.full((len(stills), 4, 16), np.nan)

    monkeypatch.setattr(FrameEncoder, "encode", overflow)
    done = run("extract", world.videos / "sample39.mp4", "--encoder", world.encoder, "--out", out)
    assert done.code == 2 and "video sample39: the features of frames" in done.err
    assert FeatureStore.open(out).ids == []
