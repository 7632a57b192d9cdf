"""The trie holds the labels and their combinations as training tokenised them, and nothing else."""

from math import perm

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from videonarrator.clip_inputs import encode_text
from videonarrator.generation.labels import LabelTrie, combinations
from videonarrator.modeling.backbones import load_tokenizer
from videonarrator.schema import NarratorError
from videonarrator.storyline import SCRIPT_LABELS, check_label


@pytest.fixture(scope="module")
def pieces_of(backbone):
    return load_tokenizer(str(backbone))


@pytest.fixture(scope="module")
def trie(pieces_of):
    return LabelTrie(SCRIPT_LABELS, pieces_of)


def written(trie, ids=()):
    """Every label that can be written on after `ids`, as ids."""
    whole = [list(ids)] if trie.may_end(ids) else []
    return whole + [one for token in trie.following(ids) for one in written(trie, [*ids, token])]


def test_what_can_be_written_is_every_label_and_combination_once(trie, pieces_of):
    lines = [pieces_of.decode(ids) for ids in written(trie)]
    assert len(lines) == len(set(lines)) == perm(12, 1) + perm(12, 2) + perm(12, 3) == 1464
    assert set(lines) == set(combinations(SCRIPT_LABELS, 3))
    for line in lines:
        check_label(line)
        assert len(set(line.split("+"))) == len(line.split("+"))


def test_a_label_is_written_as_training_tokenised_its_line(trie, pieces_of):
    newline = encode_text("\n", pieces_of)
    for label in (*SCRIPT_LABELS, "产品功效+外观设计", "其他/通用卖点+质地/成分/材质+引导购买"):
        line = encode_text(label + "\n", pieces_of)
        ids = line[: -len(newline)]
        for place, token in enumerate(ids):
            assert token in trie.following(ids[:place])
        assert trie.may_end(ids)


def test_a_label_goes_on_with_plus_until_it_has_three_parts(trie, pieces_of):
    one, two, three = (encode_text("+".join(SCRIPT_LABELS[:count]), pieces_of) for count in range(1, 4))
    assert trie.may_end(one) and trie.may_end(two) and trie.may_end(three)
    assert not trie.complete(one) and not trie.complete(two) and trie.complete(three)
    assert [pieces_of.decode([token])[0] for token in trie.following(one)] == ["+"]
    assert trie.following(three) == ()
    assert not trie.may_end([]) and not trie.may_end(one[:-1]) and not trie.complete(one[:-1])


def test_ids_that_begin_no_label_are_an_error(trie, pieces_of):
    with pytest.raises(ValueError, match="no label begins"):
        trie.following(encode_text("雨伞", pieces_of))


def test_a_user_s_labels_stand_as_they_are(pieces_of):
    labels = ["开场", "Unboxing at home", "价格/优惠"]
    lines = {pieces_of.decode(ids) for ids in written(LabelTrie(labels, pieces_of, parts=2))}
    assert {*labels, "价格/优惠+Unboxing at home", "Unboxing at home+价格/优惠"} < lines
    assert len(lines) == 9
    alone = LabelTrie(labels, pieces_of, parts=1)
    assert all(alone.complete(encode_text(label, pieces_of)) for label in labels)


def test_a_label_that_begins_another_may_end_or_go_on(pieces_of):
    trie = LabelTrie(["试用", "试用反馈"], pieces_of, parts=1)
    assert {pieces_of.decode(ids) for ids in written(trie)} == {"试用", "试用反馈"}


def test_many_labels_are_combined_in_fewer_parts(pieces_of):
    labels = [f"第{number}类" for number in range(60)]
    trie = LabelTrie(labels, pieces_of)
    assert trie.parts == 2
    assert len(written(trie)) == 60 + 60 * 59
    assert LabelTrie(labels[:1], pieces_of).parts == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "list of script labels is empty"),
        (["开场", ""], "label 2 of 2, '', is empty"),
        (["  "], "is empty"),
        (["开\n场"], "line break"),
        (["开场\n"], "line break"),
        ([" 开场"], "blanks at its ends"),
        (["开场+价格"], "joins labels"),
        (["开场", "价格", "开场"], "label 3 of 3, '开场', stands in the list twice"),
    ],
)
def test_labels_that_cannot_be_used_are_named(labels, message, pieces_of):
    with pytest.raises(NarratorError, match=message):
        LabelTrie(labels, pieces_of)


def test_a_label_that_the_tokenizer_cannot_give_back_is_an_error():
    words = models.WordLevel({"<unk>": 0, "\n": 1, "开": 2, "场": 3, "+": 4}, unk_token="<unk>")
    plain = Tokenizer(words)
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
    assert written(LabelTrie(["开场"], tokenizer)) == [[2, 3]]
    with pytest.raises(NarratorError, match="'价格' becomes ''"):
        LabelTrie(["开场", "价格"], tokenizer)
