"""`videonarrator convert ...`: other people's checkpoints, features and annotations into our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer

convert = typer.Typer(
    help="Read other people's checkpoints, features and annotations.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@convert.command("video-story")
def video_story(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="folder of text files: video's name, then mm:ss mm:ss sentence"),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="annotation file to write (JSON)")],
) -> None:
    """English "Video Story" text files to an annotation file. As product name stands the video's id."""
    from data_process.annotations import write_annotations
    from data_process.video_story import read_video_story
    from videonarrator.cli import check_writable, say

    story = read_video_story(source)
    check_writable(target.parent)
    write_annotations(target, story.videos)
    for what, lines in (
        ("clips that end in the second in which they start, given it whole", story.lengthened),
        ("clips that start before the one above, left where they stand", story.out_of_order),
    ):
        if lines:
            say(f"{what}: {len(lines)} ({', '.join(lines[:5])}{', ...' if len(lines) > 5 else ''})")
    clips = sum(len(video.clips) for video in story.videos)
    result = {"out": str(target), "videos": len(story.videos), "clips": clips}
    result |= {"lengthened": len(story.lengthened), "out_of_order": len(story.out_of_order)}
    print(json.dumps(result, ensure_ascii=False))


@convert.command("features")
def features(
    source: Annotated[Path, typer.Argument(help="folder of <id>_001.jpg.npy (frames) or <id>_0.pkl (clips)")],
    target: Annotated[Path, typer.Argument(help="folder of the store: frame features, or clip tensors")],
) -> None:
    """The published system's feature files to a feature store; makes only what is missing or has changed."""
    from videonarrator.cli import data

    data.convert_features(source, target)


@convert.command("lavis")
def lavis(
    checkpoint: Annotated[
        Path, typer.Argument(help="folder of blip2_pretrained*.pth and eva_vit_g.pth, or one file of them")
    ],
    target: Annotated[Path, typer.Argument(help="folder to write: an encoder for `extract`")],
    vit: Annotated[Path | None, typer.Option(help="the ViT's file (default: eva_vit_g.pth beside)")] = None,
    vit_heads: Annotated[int | None, typer.Option(help="attention heads of a ViT not 1408 wide")] = None,
    qformer_heads: Annotated[
        int | None, typer.Option(help="attention heads of a Q-Former not 768 wide")
    ] = None,
    vit_precision: Annotated[
        str, typer.Option(help="fp16: the ViT's matrices rounded, as LAVIS runs them; fp32: as they are")
    ] = "fp16",
) -> None:
    """LAVIS's BLIP-2 to an encoder folder in transformers' layout."""
    from data_process.lavis_checkpoint import convert_lavis
    from videonarrator.cli import check_writable, say
    from videonarrator.schema import NarratorError

    if vit_precision not in ("fp16", "fp32"):
        raise NarratorError(f"unknown --vit-precision {vit_precision!r}: fp16 or fp32")
    check_writable(target.parent)
    convert_lavis(
        checkpoint,
        target,
        vit=vit,
        vit_heads=vit_heads,
        qformer_heads=qformer_heads,
        vit_precision=cast(Any, vit_precision),
        say=say,
    )
    print(target)


@convert.command("baichuan")
def baichuan(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="folder of Baichuan-7B as published")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="backbone folder to write")],
    qkv: Annotated[
        str, typer.Option(help="fused: trained as the published system was; split: a plain LLaMA")
    ] = "fused",
) -> None:
    """A Baichuan-7B folder to a backbone that `train` and `infer` read; no code of it is run."""
    from videonarrator.cli import check_writable, say
    from videonarrator.published.baichuan import convert_baichuan
    from videonarrator.published.names import LAYOUTS
    from videonarrator.schema import NarratorError

    if qkv not in LAYOUTS:
        raise NarratorError(f"unknown --qkv {qkv!r}: {' or '.join(LAYOUTS)}")
    check_writable(target.parent)
    print(convert_baichuan(source, target, qkv, say))


@convert.command("upstream")
def upstream(
    base: Annotated[Path, typer.Option(help="base model: Baichuan-7B as published, or converted")],
    adapter: Annotated[Path, typer.Option(help="published checkpoint folder (adapter_model.bin, ...)")],
    out: Annotated[Path, typer.Option(help="checkpoint folder to write")],
    instruction: Annotated[
        Path | None, typer.Option(help="text file: the instruction the checkpoint was trained with")
    ] = None,
    published_repo: Annotated[
        Path | None, typer.Option(help="your clone of the published repository, to read that wording from")
    ] = None,
    projector: Annotated[
        Path | None, typer.Option(help="the projector's own weights, where they lie elsewhere")
    ] = None,
    random_projector: Annotated[
        bool, typer.Option("--random-projector", help="go on without them: what is seen becomes noise")
    ] = False,
    template: Annotated[str, typer.Option(help="prompt template without its instruction")] = "zh",
) -> None:
    """A checkpoint of the published training to a checkpoint folder for `infer` and `narrate`."""
    from videonarrator.cli import check_writable, say
    from videonarrator.published import importing

    check_writable(out.parent)
    wording = importing.template_with(template, instruction, published_repo)
    print(importing.run(base, adapter, out, wording, projector, random_projector, say))


@convert.command("to-upstream")
def to_upstream(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint folder that `train` wrote")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="folder to write")],
) -> None:
    """A LoRA checkpoint in the published layout, for the published code."""
    from videonarrator.cli import check_writable
    from videonarrator.published.export import export_published

    check_writable(target)
    print(export_published(checkpoint, target))
