"""Packed sequences against the samples they stand for: losses and gradients in float64; wrong masks."""

from dataclasses import replace

import pytest
import torch
from tiny_narrator import WIDTH, clip_samples, clip_tokens, tiny_config
from torch import nn
from torch.nn import functional

from videonarrator.clip_inputs import DEFAULT_RULES, IGNORED, TokenRules, encode, training_inputs
from videonarrator.modeling.backbones import BaichuanForCausalLM, add_tokens, load_tokenizer
from videonarrator.modeling.narrator import Narrator
from videonarrator.modeling.projector import VisualProjector
from videonarrator.packing import attention_mask, divided, filled, packed, video_tree
from videonarrator.prompt import ADDED_TOKENS, VISUAL_PATCH, parse_inputs
from videonarrator.schema import NarratorError


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


def tree_of(video, template, tokenizer, rules=DEFAULT_RULES, only=None):
    shots = clip_samples(video, template)
    story = parse_inputs(shots[0]["inputs"], template)
    learnt = {
        shot["shot_loc"]: (len(clip_tokens(video.id, shot["shot_loc"] - 1)), shot["shot_pos"])
        for shot in shots
        if only is None or shot["shot_loc"] in only
    }
    return video_tree(video.id, story, learnt, template, tokenizer, rules)


def visual_inputs(clips):
    return [clip_tokens(*clip).double().requires_grad_() for clip in clips]


def token_losses(narrator, ids, labels, visual, places, **how):
    """Each supervised token's loss, in order."""
    embedded = narrator.embed(torch.tensor([ids]), visual, places)
    hidden = narrator.base.model(inputs_embeds=embedded, use_cache=False, **how).last_hidden_state[0, :-1]
    targets = torch.tensor(labels[1:])
    kept = targets != IGNORED
    logits = narrator.base.get_output_embeddings()(hidden[kept])
    return functional.cross_entropy(logits, targets[kept], reduction="none")


def packed_losses(narrator, sequence, mask=None):
    visuals = visual_inputs(sequence.clips)
    places = torch.repeat_interleave(torch.tensor(sequence.places), torch.tensor(sequence.counts))
    mask = attention_mask(sequence) if mask is None else mask
    losses = token_losses(
        narrator, sequence.ids, sequence.labels, torch.cat(visuals), places,
        attention_mask=mask[None, None], position_ids=torch.tensor([sequence.positions]),
    )  # fmt: skip
    return losses, visuals


def separate_losses(narrator, tokenizer, videos, template, rules=DEFAULT_RULES):
    """The same clips, a sample each, one after the other."""
    losses, visuals = [], []
    for video in videos:
        for shot in clip_samples(video, template):
            (visual,) = visual_inputs([(video.id, shot["shot_loc"] - 1)])
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


@pytest.mark.parametrize(
    "rules", [TokenRules(), TokenRules(strip_around_added_tokens=True), TokenRules(bos=False)]
)
def test_several_videos_in_one_sequence(rules, narrator, sample_videos, zh):
    """Three videos and one of a single clip: per-token losses and all gradients, visual features' too."""
    model, tokenizer = narrator
    videos = some_videos(sample_videos, 3)
    sequence = packed([tree_of(video, zh, tokenizer, rules) for video in videos])
    assert sequence.samples == sum(len(video.clips) for video in videos)
    agree(model, packed_losses(model, sequence), separate_losses(model, tokenizer, videos, zh, rules))


def test_divided_videos(narrator, sample_videos, zh):
    model, tokenizer = narrator
    video = sample_videos["sample01"]
    tree = tree_of(video, zh, tokenizer)
    longest = max(branch.start + len(branch.ids) for branch in tree.branches) + 20
    parts = divided(tree, longest)
    assert len(parts) > 1 and all(part.length <= longest for part in parts)
    assert [b.clip for part in parts for b in part.branches] == [b.clip for b in tree.branches]
    sides = [packed_losses(model, packed([part])) for part in parts]
    losses, visuals = torch.cat([side[0] for side in sides]), [v for side in sides for v in side[1]]
    agree(model, (losses, visuals), separate_losses(model, tokenizer, [video], zh))
    assert divided(tree, tree.length) == [tree]
    with pytest.raises(
        NarratorError, match=r"sample of video sample01, clip \d+, has \d+ tokens; a sequence"
    ):
        divided(tree, 60)


def test_only_some_clips_are_learnt(narrator, sample_videos, zh):
    model, tokenizer = narrator
    video = sample_videos["sample01"]
    sequence = packed([tree_of(video, zh, tokenizer, only={2, 3})])
    assert [clip for _, clip in sequence.clips] == [1, 2]
    losses, _ = packed_losses(model, sequence)
    whole, _ = packed_losses(model, packed([tree_of(video, zh, tokenizer)]))
    counts = [sum(label != IGNORED for label in b.labels) for b in tree_of(video, zh, tokenizer).branches]
    wanted = whole[counts[0] : sum(counts[:3])]
    assert (losses - wanted).abs().max() < 1e-10


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
    sequence = packed([tree_of(video, zh, tokenizer) for video in videos])
    wanted, _ = separate_losses(model, tokenizer, videos, zh)
    wrong = MISTAKES[mistake](sequence, attention_mask(sequence))
    assert (packed_losses(model, sequence, wrong)[0] - wanted).abs().max() > 1e-3
    wrong_places = replace(sequence, positions=list(range(len(sequence.ids))))
    right = attention_mask(sequence)
    assert (packed_losses(model, wrong_places, right)[0] - wanted).abs().max() > 1e-3


def test_padding_attends_to_itself_alone(narrator, sample_videos, zh):
    sequence = packed([tree_of(sample_videos["sample01"], zh, narrator[1])])
    size = len(sequence.ids)
    mask = attention_mask(sequence, size + 3)
    assert mask[:size, :size].equal(attention_mask(sequence)) and not mask[:size, size:].any()
    assert mask[size:].equal(torch.eye(size + 3, dtype=torch.bool)[size:])


def test_short_videos_share_sequences(narrator, sample_videos, zh):
    """Every tree in one group, none over the limit, and fewer groups than videos."""
    trees = [tree_of(video, zh, narrator[1]) for video in list(sample_videos.values())[:12]]
    longest = 3 * max(tree.length for tree in trees)
    groups = filled(trees, longest)
    assert all(sum(tree.length for tree in group) <= longest for group in groups)
    assert sorted(tree.video_id for group in groups for tree in group) == sorted(t.video_id for t in trees)
    assert len(groups) <= -(-len(trees) // 3)


def test_real_videos_are_packed_to_a_third(real_samples, zh, tokenizer):
    """Against padded batches of four, as the published collator makes them, with as many visual tokens."""
    draw = torch.Generator().manual_seed(0)
    alone, together = [], 0
    for sample in real_samples[:60]:
        story = parse_inputs(sample["inputs"], zh)
        learnt = {clip.number: (32 * (2 + clip.number % 4), 0) for clip in story.clips}
        tree = video_tree(sample["id"], story, learnt, zh, tokenizer, TokenRules())
        together += tree.length
        whole = len(tree.trunk) + len(tree.branches[-1].ids)  # the published samples hold later clips, too
        alone += [whole - tree.branches[-1].count + branch.count for branch in tree.branches]
    order = torch.randperm(len(alone), generator=draw).tolist()
    padded = sum(
        4 * max(alone[index] for index in order[at : at + 4]) for at in range(0, len(order) // 4 * 4, 4)
    )
    assert padded > 3 * together
