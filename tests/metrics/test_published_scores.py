"""The published code's numbers on the fixed input, final ones and those of every clip and story."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from metrics import Evaluation, evaluate
from metrics.ngram import upstream_text
from metrics.scoring.corrections import CORRECTIONS, concerning
from metrics.words.segment import sentencepiece_tokenizer

NEAR = {"rel": 1e-9, "abs": 1e-12}
FLOAT32 = {"rel": 1e-5, "abs": 1e-12}

GOLDEN = {
    "bleu_1": ("bleu_1", 1, NEAR),
    "bleu_2": ("bleu_2", 1, NEAR),
    "bleu_3": ("bleu_3", 1, NEAR),
    "bleu_4": ("bleu_4", 1, NEAR),
    "meteor": ("meteor", 1, NEAR),
    "cider": ("cider", 1, NEAR),
    "emscore": ("EMScore(X,V) full_F x100", 1, FLOAT32),
    "emscore_ref": ("EMScore(X,V,X*) full_F x100", 1, FLOAT32),
    "info_sim": ("info_sim", 1, FLOAT32),
    "info_diverse": ("info_diverse", 1, FLOAT32),
    "repetition": ("intra_repeat", 1, NEAR),
}
EMSCORE_PARTS = {"precision": "figr_P", "recall": "figr_R", "fine": "figr_F", "coarse": "cogr"}


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("environment", ["final", "final_transformers_5.23"])
def test_final_value(published: Evaluation, golden: dict[str, Any], name: str, environment: str) -> None:
    key, factor, near = GOLDEN[name]
    assert published.scores[name].value == pytest.approx(factor * golden[environment][key], **near)


@pytest.mark.parametrize("part", EMSCORE_PARTS)
def test_parts_of_emscore(published: Evaluation, golden: dict[str, Any], part: str) -> None:
    final, name = golden["final"], EMSCORE_PARTS[part]
    for metric, kind in (("emscore", "(X,V)"), ("emscore_ref", "(X,V,X*)")):
        value = published.scores[metric].components[part]
        assert value == pytest.approx(final[f"EMScore{kind} {name} x100"], **FLOAT32)
    own = published.scores["emscore_ref"].components[f"reference_{part}"]
    assert own == pytest.approx(final[f"EMScore(X,X*) {name} x100"], **FLOAT32)


@pytest.mark.parametrize(("name", "kind"), [("emscore", "EMScore(X,V)"), ("emscore_ref", "EMScore(X,V,X*)")])
def test_emscore_of_every_clip(published: Evaluation, golden: dict[str, Any], name: str, kind: str) -> None:
    expected, samples = golden["per_sample"]["emscore"], published.scores[name].samples
    assert list(samples) == expected["keys"]
    values = [100 * value for value in expected[kind]["full_F"]]
    assert list(samples.values()) == pytest.approx(values, abs=2e-4)


def test_info_sim_of_every_clip(published: Evaluation, golden: dict[str, Any]) -> None:
    expected, samples = golden["per_sample"]["info_sim"], published.scores["info_sim"].samples
    assert list(samples) == expected["keys"]
    assert list(samples.values()) == pytest.approx(expected["values"], abs=1e-6)


def test_info_diverse_of_every_story(published: Evaluation, golden: dict[str, Any]) -> None:
    expected, score = golden["per_sample"]["info_diverse"], published.scores["info_diverse"]
    ids = [name.removesuffix(".mp4") for name in expected["ids"]]
    assert score.samples == pytest.approx(dict(zip(ids, expected["per_second"], strict=True)), **NEAR)
    per_word = golden["final"]["info_diverse_per_word (upstream computes, does not print)"]
    assert score.components["per_word"] == pytest.approx(per_word, **NEAR)


def test_bleu_of_every_clip(published: Evaluation, golden: dict[str, Any]) -> None:
    captions = golden["per_sample"]["caption"]
    for n, values in enumerate(captions["bleu_1..4"], 1):
        samples = published.scores[f"bleu_{n}"].samples
        assert list(samples) == captions["keys"]
        assert list(samples.values()) == pytest.approx(values, **NEAR)


@pytest.mark.parametrize("name", ["cider", "meteor"])
def test_captions_of_every_clip(published: Evaluation, golden: dict[str, Any], name: str) -> None:
    captions, samples = golden["per_sample"]["caption"], published.scores[name].samples
    assert list(samples) == captions["keys"]
    assert list(samples.values()) == pytest.approx(captions[name], **NEAR)


def test_repetition_of_every_story(published: Evaluation, golden: dict[str, Any]) -> None:
    stories, score = golden["per_sample"]["intra_repeat"], published.scores["repetition"]
    expected = dict(
        zip((name.removesuffix(".mp4") for name in stories["ids"]), stories["values"], strict=True)
    )
    assert score.samples == pytest.approx(expected, **NEAR)
    assert score.value == pytest.approx(
        golden["variants"]["intra_repeat: upstream (words.txt loaded)"], **NEAR
    )
    share = golden["variants"]["intra_repeat: a word counts once however many earlier captions have it"]
    assert score.components["share"] == pytest.approx(share, **NEAR)


def test_counts(published: Evaluation, golden: dict[str, Any]) -> None:
    counts, clips = golden["counts"], published.scores["bleu_4"].as_json()
    assert clips["n_scored"] == counts["caption_samples"]
    assert clips["n_skipped"] == {
        "narration_missing": counts["missing"],
        "narration_under_4_characters": counts["shorter_than_4"],
    }
    for name, count in (
        ("emscore", "emscore_samples"),
        ("info_sim", "info_sim_captions"),
        ("info_diverse", "info_diverse_videos"),
        ("repetition", "intra_repeat_videos"),
        ("label_accuracy", "clips"),
    ):
        assert published.scores[name].as_json()["n_scored"] == counts[count]


def test_token_ids(fixture_folder: Path) -> None:
    """The ids are those of the published tokenising script, text for text."""
    encode = sentencepiece_tokenizer(
        fixture_folder / "models" / "baichuan-tokenizer" / "tokenizer.model"
    ).encode
    tokens = json.loads((fixture_folder / "data" / "out_tokens.json").read_text(encoding="utf-8"))
    entries = json.loads((fixture_folder / "data" / "output.json").read_text(encoding="utf-8"))
    for key, entry in entries.items():
        for field in ("gt", "0.1"):
            text = upstream_text(entry[field]) if field in entry else None
            assert (None if text is None else list(encode(text))) == tokens[key].get(field)


# -------------------- what is corrected by default


def test_the_published_value_stands_beside_the_corrected_one(
    corrected: Evaluation, published: Evaluation
) -> None:
    for name, score in corrected.scores.items():
        if concerning(name):
            assert score.published == pytest.approx(published.scores[name].value, rel=1e-9)
            assert list(score.moved) == concerning(name)
            assert str(score.signature) != str(published.scores[name].signature)
        else:
            assert score.published is None and score.value == published.scores[name].value


def test_what_each_correction_is_worth(corrected: Evaluation, golden: dict[str, Any]) -> None:
    """The fixture's own figures of what the oddities move, each alone."""
    scores, variants = corrected.scores, golden["variants"]
    moved = scores["emscore"].moved["padded_maximum"]
    unpadded = variants["EMScore: no zero padding in max"]["EMScore(X,V) full_F"]
    padded = variants["EMScore: upstream"]["EMScore(X,V) full_F"]
    # short narrations count in the corrected value, and the published batches are others then
    assert moved == pytest.approx(unpadded - padded, abs=0.01) and moved < 0
    kept = variants["info_sim: last caption kept"]
    assert scores["info_sim"].value == pytest.approx(kept, **FLOAT32)
    upstream = variants["info_sim: upstream (words.txt loaded)"]
    assert scores["info_sim"].moved["last_entry_left_out"] == pytest.approx(kept - upstream, abs=2e-7)
    assert scores["cider"].moved["short_texts_left_out"] < 0
    assert scores["repetition"].moved["ids_for_stories_only"] == 0


def test_emscore_without_padding(everything: dict[str, Any], golden: dict[str, Any]) -> None:
    """Only the clips that the published code scores: its variants without padding, and with the mean as P."""
    entries = json.loads(Path(everything["output"]).read_text(encoding="utf-8"))
    kept = golden["per_sample"]["emscore"]["keys"]
    assert len(kept) < len(entries)
    score = evaluate(**everything, metrics=["emscore", "emscore_ref"]).scores
    for name, kind in (("emscore", "EMScore(X,V) full_F"), ("emscore_ref", "EMScore(X,V,X*) full_F")):
        values = [score[name].samples[key] for key in kept]
        expected = golden["variants"]["EMScore: no zero padding in max"][kind]
        assert sum(values) / len(values) == pytest.approx(expected, rel=1e-5)


def test_a_tokenizer_that_adds_no_beginning(
    everything: dict[str, Any], golden: dict[str, Any], tmp_path: Path
) -> None:
    """The published code then drops the first real token; by default none is, and the loss is told."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(everything["tokenizer"], folder, copy_function=shutil.copyfile)
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    settings = everything | {"tokenizer": str(folder)}
    cut = evaluate(**settings, metrics=["bleu", "cider"], upstream=True).scores
    variant = golden["variants"]["caption: tokenizer without BOS ([1:] eats the first real token)"]
    assert [cut[f"bleu_{n}"].value for n in range(1, 5)] == pytest.approx(variant["bleu"], **NEAR)
    assert cut["cider"].value == pytest.approx(variant["cider"], **NEAR)
    whole = evaluate(**settings, metrics=["bleu_1"]).scores["bleu_1"]
    added = evaluate(**everything, metrics=["bleu_1"]).scores["bleu_1"]
    assert whole.value == added.value
    assert added.moved["first_token_cut"] == 0 != whole.moved["first_token_cut"]


def test_without_user_dictionary(everything: dict[str, Any], golden: dict[str, Any]) -> None:
    names = ["info_sim", "info_diverse", "repetition"]
    plain = evaluate(**everything | {"user_dict": None}, metrics=names, upstream=True).scores
    variants = golden["variants"]
    repeated = variants["intra_repeat: default jieba dictionary (no words.txt)"]
    assert plain["repetition"].value == pytest.approx(repeated, **NEAR)
    similar = variants["info_sim: default jieba dictionary (no words.txt)"]
    assert plain["info_sim"].value == pytest.approx(similar, **FLOAT32)
    diverse = variants["info_diverse: default jieba dictionary (no words.txt)"]["per_second"]
    assert plain["info_diverse"].value == pytest.approx(diverse, **NEAR)


def test_every_correction_names_metrics_there_are(published: Evaluation) -> None:
    assert {name for metrics, _ in CORRECTIONS.values() for name in metrics} <= published.scores.keys()
