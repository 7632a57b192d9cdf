"""Packed sequences against the samples they stand for: losses and gradients in float64; wrong masks."""

from dataclasses import replace

import pytest
import torch
from tiny_narrator import WIDTH, clip_samples, clip_tokens, tiny_config
from torch import nn
from torch.nn import functional
from torch.nn.attention.flex_attention import create_mask

from videonarrator.clip_inputs import DEFAULT_RULES, IGNORED, TokenRules, encode, training_inputs
from videonarrator.dataset import ClipSamples, video_trees
from videonarrator.modeling.attention import (
    TREE_SDPA,
    register,
    tree_block_mask,
    tree_mask,
    tree_segments,
)
from videonarrator.modeling.backbones import BaichuanForCausalLM, add_tokens, load_tokenizer
from videonarrator.modeling.narrator import Narrator
from videonarrator.modeling.projector import VisualProjector
from videonarrator.packing import divided, filled, lone_tree, packed, video_tree
from videonarrator.prompt import ADDED_TOKENS, VISUAL_PATCH, parse_inputs
from videonarrator.training.batches import Packed


class ExactNorm(nn.Module):
    """RMSNorm without LLaMA's detour through float32."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, states):
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.eps)


@pytest.fixture(scope="module")
def narrator(backbone):
    """A tiny Baichuan in float64 in which nothing goes through float32."""
    tokenizer = load_tokenizer(str(backbone))
    torch.manual_seed(2)
    model = BaichuanForCausalLM(tiny_config(len(tokenizer), attn_implementation="sdpa"))
    add_tokens(model, tokenizer, ADDED_TOKENS)
    projector = VisualProjector(WIDTH, 32)
    narrator = Narrator(model, projector, tokenizer.convert_tokens_to_ids(VISUAL_PATCH)).double().eval()
    for layer in model.model.layers:
        layer.input_layernorm = ExactNorm(layer.input_layernorm)
        layer.post_attention_layernorm = ExactNorm(layer.post_attention_layernorm)
    model.model.norm = ExactNorm(model.model.norm)
    return narrator, tokenizer


def samples_of(videos, template, tokenizer, rules=DEFAULT_RULES, only=None):
    """The data set of those videos' clips (of `only` these numbers)."""
    shots = [
        one for v in videos for one in clip_samples(v, template) if only is None or one["shot_loc"] in only
    ]
    return ClipSamples(shots, clip_tokens, tokenizer, template, WIDTH, rules=rules)


def visual_inputs(dataset, samples):
    return [dataset[sample]["visual"].double().requires_grad_() for sample in samples]


def tree_of(sequence):
    return torch.tensor([sequence.videos, sequence.branches, sequence.limits, sequence.positions])


def token_losses(narrator, ids, labels, visual, places, **how):
    """Each supervised token's loss, in order."""
    embedded = narrator.embed(torch.tensor([ids]), visual, places)
    hidden = narrator.base.model(inputs_embeds=embedded, use_cache=False, **how).last_hidden_state[0, :-1]
    targets = torch.tensor(labels[1:])
    kept = targets != IGNORED
    logits = narrator.base.get_output_embeddings()(hidden[kept])
    return functional.cross_entropy(logits, targets[kept], reduction="none")


def packed_losses(narrator, dataset, trees, change=lambda sequence, mask: mask, **how):
    sequence = packed(trees)
    visuals = visual_inputs(dataset, sequence.samples)
    places = [dataset.items[sample]["positions"][0] for sample in sequence.samples]
    places = torch.repeat_interleave(torch.tensor(places), torch.tensor([len(one) for one in visuals]))
    mask = change(sequence, tree_mask(tree_of(sequence)))
    losses = token_losses(
        narrator, sequence.ids, sequence.labels, torch.cat(visuals), places,
        attention_mask=mask[None, None], position_ids=torch.tensor([sequence.positions]), **how,
    )  # fmt: skip
    return losses, visuals


def separate_losses(narrator, tokenizer, videos, template, rules=DEFAULT_RULES):
    """The same clips, a sample each, one after the other; made here, without the data set."""
    losses, visuals = [], []
    for video in videos:
        for shot in clip_samples(video, template):
            visual = clip_tokens(video.id, shot["shot_loc"] - 1).double().requires_grad_()
            inputs = training_inputs(shot, visual, template, later=False)
            ids, labels = encode(inputs.segments, tokenizer, inputs.counts, rules)
            places = torch.full((len(visual),), shot["shot_pos"])
            losses.append(token_losses(narrator, ids, labels, visual, places))
            visuals.append(visual)
    return torch.cat(losses), visuals


def gradients(narrator, losses, visuals):
    narrator.zero_grad()
    losses.sum().backward()
    found = {name: p.grad.clone() for name, p in narrator.named_parameters() if p.grad is not None}
    return found | {f"visual {index}": visual.grad for index, visual in enumerate(visuals)}


def agree(narrator, one, other):
    assert (one[0] - other[0]).abs().max() < 1e-10 and len(one[0]) == len(other[0]) > 0
    first, second = (gradients(narrator, *side) for side in (one, other))
    assert first.keys() == second.keys() and len(first) > 20
    for name, gradient in first.items():
        scale = max(gradient.abs().max().item(), 1.0)
        assert (gradient - second[name]).abs().max() < 1e-10 * scale, name


def some_videos(sample_videos, number):
    videos = list(sample_videos.values())[:number]
    single = replace(videos[0], id="single", clips=videos[0].clips[:1])
    return [*videos, single]


def all_trees(dataset):
    return [tree for video in video_trees(dataset) for tree in video]


@pytest.mark.parametrize(
    "rules", [TokenRules(), TokenRules(strip_around_added_tokens=True), TokenRules(bos=False)]
)
def test_several_videos_in_one_sequence(rules, narrator, sample_videos, zh):
    """Three videos and one of a single clip: per-token losses and all gradients, visual features' too."""
    model, tokenizer = narrator
    videos = some_videos(sample_videos, 3)
    dataset = samples_of(videos, zh, tokenizer, rules)
    trees = all_trees(dataset)
    assert [len(tree.branches) for tree in trees] == [len(video.clips) for video in videos]
    agree(model, packed_losses(model, dataset, trees), separate_losses(model, tokenizer, videos, zh, rules))


def test_divided_videos(narrator, sample_videos, zh):
    model, tokenizer = narrator
    video = sample_videos["sample01"]
    dataset = samples_of([video], zh, tokenizer)
    (tree,) = all_trees(dataset)
    longest = max(branch.length for branch in tree.branches) + 20
    parts = divided(tree, longest)
    assert len(parts) > 1 and all(part.length <= longest for part in parts)
    assert [b.sample for part in parts for b in part.branches] == [b.sample for b in tree.branches]
    sides = [packed_losses(model, dataset, [part]) for part in parts]
    losses, visuals = torch.cat([side[0] for side in sides]), [v for side in sides for v in side[1]]
    agree(model, (losses, visuals), separate_losses(model, tokenizer, [video], zh))
    assert divided(tree, tree.length) == [tree]
    with pytest.raises(ValueError, match=r"a branch of \d+ tokens does not fit into 60"):
        divided(tree, 60)


def test_samples_that_share_nothing_share_a_sequence(narrator, sample_videos, zh):
    """As whole videos and published samples are packed: side by side, without a trunk."""
    model, tokenizer = narrator
    videos = some_videos(sample_videos, 1)
    dataset = samples_of(videos, zh, tokenizer)
    trees = [lone_tree(index, item["ids"], item["labels"]) for index, item in enumerate(dataset.items)]
    agree(model, packed_losses(model, dataset, trees), separate_losses(model, tokenizer, videos, zh))


@pytest.fixture
def by_branch(narrator):
    """The narrator with the attention that training takes."""
    register()
    narrator[0].base.set_attn_implementation(TREE_SDPA)
    yield narrator
    narrator[0].base.set_attn_implementation("sdpa")


@pytest.mark.parametrize("longest", [10_000, 500])
def test_attention_branch_by_branch(longest, by_branch, sample_videos, zh):
    """Several videos, divided ones, and samples that share nothing; the mask it is given is not looked at."""
    model, tokenizer = by_branch
    videos = some_videos(sample_videos, 2)
    dataset = samples_of(videos, zh, tokenizer)
    trees = [part for tree in all_trees(dataset) for part in divided(tree, longest)]
    last = trees[-1].branches[-1].sample
    trees[-1:] = [lone_tree(last, dataset.items[last]["ids"], dataset.items[last]["labels"])]
    losses, visuals = [], []
    for group in filled(trees, longest):
        group = sorted(group, key=lambda tree: tree.branches[0].sample)
        segments = tree_segments(tree_of(packed(group)))
        assert len(segments) == len(group)
        found = packed_losses(model, dataset, group, lambda s, mask: torch.ones_like(mask), segments=segments)
        losses.append((group[0].branches[0].sample, found))
    losses.sort(key=lambda one: one[0])
    visuals = [visual for _, (_, seen) in losses for visual in seen]
    found = torch.cat([own for _, (own, _) in losses]), visuals
    wanted = separate_losses(model, tokenizer, videos, zh)
    if longest > 1000:
        agree(model, found, wanted)
    else:  # groups may interleave videos: compared sample by sample
        assert sorted(found[0].tolist()) == pytest.approx(sorted(wanted[0].tolist()), abs=1e-10)


def test_wrong_segments_are_seen(by_branch, sample_videos, zh):
    model, tokenizer = by_branch
    dataset = samples_of(some_videos(sample_videos, 1), zh, tokenizer)
    trees = all_trees(dataset)
    segments = tree_segments(tree_of(packed(trees)))
    wanted, _ = packed_losses(model, dataset, trees, segments=segments)
    (begin, end, branches), *others = segments
    first, last, limit = branches[1]
    branches[1] = (first, last, limit - 3)
    found, _ = packed_losses(model, dataset, trees, segments=[(begin, end, branches), *others])
    assert (found - wanted).abs().max() > 1e-3


def test_a_clip_that_is_listed_twice_is_learnt_twice(narrator, sample_videos, zh):
    model, tokenizer = narrator
    video = sample_videos["sample01"]
    shots = clip_samples(video, zh)
    dataset = ClipSamples([*shots, shots[2]], clip_tokens, tokenizer, zh, WIDTH)
    trees = all_trees(dataset)
    assert [[branch.sample for branch in tree.branches] for tree in trees] == [[0, 1, 2, 3, 4, 5], [6]]
    losses, _ = packed_losses(model, dataset, trees)
    again, _ = packed_losses(model, dataset, trees[1:])
    assert (losses[-len(again) :] - again).abs().max() < 1e-10


def test_samples_of_other_stories_share_no_trunk(narrator, sample_videos, zh):
    """An edited text makes another story of the same video."""
    _, tokenizer = narrator
    shots = clip_samples(sample_videos["sample01"], zh)
    told = sample_videos["sample01"].clips[0].text
    shots[3] = shots[3] | {"inputs": shots[3]["inputs"].replace(told, "别的话。")}
    trees = all_trees(ClipSamples(shots, clip_tokens, tokenizer, zh, WIDTH))
    assert [[branch.sample for branch in tree.branches] for tree in trees] == [[0, 1, 2, 4, 5], [3]]


def test_only_some_clips_are_learnt(narrator, sample_videos, zh):
    model, tokenizer = narrator
    video = sample_videos["sample01"]
    some = samples_of([video], zh, tokenizer, only={2, 3})
    losses, _ = packed_losses(model, some, all_trees(some))
    every = samples_of([video], zh, tokenizer)
    whole, _ = packed_losses(model, every, all_trees(every))
    counts = [item["targets"] for item in every.items]
    assert (losses - whole[counts[0] : sum(counts[:3])]).abs().max() < 1e-10


MISTAKES = {
    "causal over everything": lambda s, mask: torch.ones_like(mask).tril(),
    "branches see each other": lambda s, mask: (
        mask | ((torch.tensor(s.branches)[:, None] > 1) & (torch.tensor(s.branches)[None] == 1))
    ),
    "the trunk's end is seen": lambda s, mask: (
        mask | ((torch.tensor(s.branches)[:, None] == 1) & (torch.tensor(s.branches)[None] == 0))
    ),
    "videos see each other": lambda s, mask: (
        mask | (torch.tensor(s.videos)[:, None] > torch.tensor(s.videos)[None])
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_mask_is_seen(mistake, narrator, sample_videos, zh):
    model, tokenizer = narrator
    videos = some_videos(sample_videos, 1)
    dataset = samples_of(videos, zh, tokenizer)
    trees = all_trees(dataset)
    wanted, _ = separate_losses(model, tokenizer, videos, zh)
    assert (packed_losses(model, dataset, trees)[0] - wanted).abs().max() < 1e-10
    found, _ = packed_losses(model, dataset, trees, MISTAKES[mistake])
    assert (found - wanted).abs().max() > 1e-3


@torch.no_grad()
def test_wrong_positions_are_seen(narrator, sample_videos, zh, monkeypatch):
    model, tokenizer = narrator
    videos = some_videos(sample_videos, 1)
    dataset = samples_of(videos, zh, tokenizer)
    wanted, _ = separate_losses(model, tokenizer, videos, zh)

    def shifted(sequence, mask):
        sequence.positions[:] = range(len(sequence.ids))  # after the mask was made
        return mask

    found, _ = packed_losses(model, dataset, all_trees(dataset), shifted)
    assert (found - wanted).abs().max() > 1e-3


@torch.no_grad()
def test_the_narrator_s_own_forward_and_the_blocks_of_flex_attention(by_branch, sample_videos, zh):
    """What training calls, with either form of the mask; flex_attention's backward needs a GPU."""
    model, tokenizer = by_branch
    videos = some_videos(sample_videos, 2)
    dataset = samples_of(videos, zh, tokenizer)
    tensors, _ = Packed(dataset, video_trees(dataset), [range(len(videos))], 10_000).tensors(
        all_trees(dataset)
    )
    wanted, _ = packed_losses(model, dataset, all_trees(dataset))
    for attention in ("sdpa", TREE_SDPA):
        model.base.set_attn_implementation(attention)
        made = model(**tensors | {"visual": tensors["visual"].double()})
        assert (made["token_losses"] - wanted).abs().max() < 1e-10
    model.base.set_attn_implementation("sdpa")
    tree = tensors["tree"]
    length = tree.shape[1]
    dense = create_mask(tree_block_mask(tree).mask_mod, 1, 1, length, length, device="cpu")[0, 0]
    assert dense.equal(tree_mask(tree)) and not dense.all()
    blocks = tree_block_mask(tree).to_dense()[0, 0].bool()
    size = tree_block_mask(tree).BLOCK_SIZE[0]
    for row in range(blocks.shape[0]):
        for column in range(blocks.shape[1]):
            part = dense[row * size : (row + 1) * size, column * size : (column + 1) * size]
            assert bool(blocks[row, column]) == bool(part.any())


def test_short_videos_share_sequences(narrator, sample_videos, zh):
    """Every tree in one group, none over the limit, and fewer groups than videos."""
    trees = all_trees(samples_of(list(sample_videos.values())[:12], zh, narrator[1]))
    longest = 3 * max(tree.length for tree in trees)
    groups = filled(trees, longest)
    assert all(sum(tree.length for tree in group) <= longest for group in groups)
    firsts = [tree.branches[0].sample for tree in trees]
    assert sorted(tree.branches[0].sample for group in groups for tree in group) == sorted(firsts)
    assert len(groups) <= -(-len(trees) // 3)


def test_real_videos_are_packed_to_a_third(real_samples, zh, tokenizer):
    """Against padded batches of four, as the published collator makes them, with as many visual tokens."""
    draw = torch.Generator().manual_seed(0)
    alone, together = [], 0
    for sample in real_samples[:60]:
        story = parse_inputs(sample["inputs"], zh)
        learnt = {clip.number: (0, 32 * (2 + clip.number % 4)) for clip in story.clips}
        tree = video_tree(story, learnt, zh, tokenizer, TokenRules())
        together += tree.length
        text = len(tree.trunk) + len(tree.branches[-1].ids) - learnt[story.clips[-1].number][1]
        alone += [text + count for _, count in learnt.values()]  # the published samples hold later clips, too
    order = torch.randperm(len(alone), generator=draw).tolist()
    padded = sum(
        4 * max(alone[index] for index in order[at : at + 4]) for at in range(0, len(order) // 4 * 4, 4)
    )
    assert padded > 3 * together
