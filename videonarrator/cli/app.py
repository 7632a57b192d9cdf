"""The verbs and their options; what they do stands in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from videonarrator.cli.convert import convert
from videonarrator.version import VERSION

app = typer.Typer(
    name="videonarrator",
    help="Narrations for product videos: a storyline, then a narration as long as each clip.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # what is wrong with the words stands in one line, not in a frame
)
sample = typer.Typer(help="The project's own small data set.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(sample, name="sample")
app.add_typer(convert, name="convert")

Overrides = Annotated[list[str] | None, typer.Argument(help="settings as key=value, over those of the file")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Precision = Annotated[str, typer.Option(help="float32, bfloat16 or float16")]
Rate = Annotated[
    str | None, typer.Option(help="characters (words) a second, default 6 (2.5), or calibrate's file")
]
Backbone = Annotated[str | None, typer.Option(help="where the frozen language model lies, if it was moved")]


@app.callback(invoke_without_command=True)
def about(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        print(f"videonarrator {VERSION}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def cut(
    videos: Annotated[list[Path], typer.Argument(help="video files, or folders of them")],
    out: Annotated[Path, typer.Option(help="folder for <video>.json and <video>.csv")],
    detector: Annotated[str, typer.Option(help="adaptive or content")] = "adaptive",
    threshold: Annotated[
        float | None, typer.Option(help="the detector's threshold (default: its own)")
    ] = None,
    min_seconds: Annotated[float, typer.Option(help="shorter shots are merged into a neighbour")] = 1.0,
    max_seconds: Annotated[float, typer.Option(help="longer shots are split evenly")] = 15.0,
) -> None:
    """Cut videos into clips at their shot boundaries."""
    from videonarrator.cli import data

    data.cut(videos, out, detector, threshold, min_seconds, max_seconds)


@app.command()
def extract(
    videos: Annotated[list[Path], typer.Argument(help="video files, or folders of them")],
    encoder: Annotated[str, typer.Option(help="BLIP-2 folder or hub name")],
    out: Annotated[Path, typer.Option(help="folder of the feature store")],
    clip_model: Annotated[
        str | None, typer.Option(help="CLIP folder or hub name: its features too, for prepare --memory clip")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    device: Device = "cpu",
    precision: Precision = "float32",
) -> None:
    """Frame features of videos: one still a second through BLIP-2's vision model and Q-Former."""
    from videonarrator.cli import data

    data.extract(videos, encoder, out, clip_model, batch_size, device, precision)


@app.command()
def stills(
    videos: Annotated[list[Path], typer.Argument(help="video files, or folders of them")],
    out: Annotated[Path, typer.Option(help="folder for the stills")],
) -> None:
    """Stills of videos as JPEG, one a second: what `python -m metrics --frames` looks at."""
    from videonarrator.cli import data

    data.stills(videos, out)


@app.command()
def prepare(
    annotations: Annotated[Path, typer.Option(help="annotation file (JSON)")],
    test_ids: Annotated[Path, typer.Option(help="ids of the held-out videos, one a line")],
    features: Annotated[Path, typer.Option(help="feature store that `extract` wrote")],
    out: Annotated[Path, typer.Option(help="folder for clip tensors and sample lists")],
    template: Annotated[
        str, typer.Option(help="prompt template: a name in configs/prompts, or a file")
    ] = "zh",
    threshold: Annotated[
        float | None, typer.Option(help="neighbouring frames this alike are one; default 0.9", min=-1, max=1)
    ] = None,
    memory: Annotated[
        str, typer.Option(help="what earlier clips showed is merged by: tokens, or clip (CLIP features)")
    ] = "tokens",
    compress: Annotated[
        bool, typer.Option("--compress/--no-compress", help="drop near repeats inside a clip")
    ] = True,
    compat: Annotated[
        str, typer.Option(help="upstream: sample lists as the published scripts write them, mistakes and all")
    ] = "none",
) -> None:
    """Clip tensors (compression and memory), splits and sample lists from annotations and features."""
    from videonarrator.cli import data

    data.prepare(annotations, test_ids, features, out, template, threshold, memory, compress, compat)


@app.command()
def train(
    config: Annotated[str, typer.Option(help="YAML file, or the name of one in configs/")],
    overrides: Overrides = None,
) -> None:
    """Train a narrator: LoRA (or all weights), embeddings, projector and position table."""
    from videonarrator.cli import training

    training.train(config, overrides or [])


@app.command()
def infer(
    annotations: Annotated[Path, typer.Option(help="annotation file (JSON)")],
    ids: Annotated[Path, typer.Option(help="ids of the videos to narrate, one a line")],
    features: Annotated[Path, typer.Option(help="folder of frame features, or of clip tensors")],
    checkpoint: Annotated[Path, typer.Option(help="checkpoint folder that `train` wrote")],
    out: Annotated[Path, typer.Option(help="folder for output.json and the scripts")],
    offered_label: Annotated[
        bool, typer.Option(help="give the annotated labels instead of generating")
    ] = False,
    rate: Rate = None,
    config: Annotated[str | None, typer.Option(help="YAML file with decoding settings")] = None,
    backbone: Backbone = None,
    device: Device = "cpu",
    precision: Precision = "float32",
    compat: Annotated[
        str, typer.Option(help="upstream: write, and write output.json, as the published code does")
    ] = "none",
    overrides: Overrides = None,
) -> None:
    """Narrate annotated videos, so that the result can be scored: writes output.json."""
    from videonarrator.cli import inference

    inference.infer(
        annotations, ids, features, checkpoint, out, offered_label, rate, config, backbone, device, precision,
        compat, overrides or [],
    )  # fmt: skip


@app.command()
def narrate(
    video: Annotated[Path, typer.Argument(help="a video file")],
    product: Annotated[Path, typer.Option(help="YAML file: name and info of the product")],
    checkpoint: Annotated[Path, typer.Option(help="checkpoint folder that `train` wrote")],
    out: Annotated[Path, typer.Option(help="folder for script.json and script.md")],
    cuts: Annotated[
        Path | None, typer.Option(help="your own cut list (JSON or CSV) instead of detection")
    ] = None,
    storyline: Annotated[Path | None, typer.Option(help="your own script labels, one a line")] = None,
    rate: Rate = None,
    encoder: Annotated[str | None, typer.Option(help="the BLIP-2 of the checkpoint, if it was moved")] = None,
    clip_model: Annotated[
        str | None, typer.Option(help="the CLIP of the checkpoint's memory, if it was moved")
    ] = None,
    config: Annotated[str, typer.Option(help="YAML file with decoding settings")] = "narrate",
    backbone: Backbone = None,
    device: Device = "cpu",
    precision: Precision = "float32",
    overrides: Overrides = None,
) -> None:
    """Narrate a new video: cut, look, write. Prints the script as a table."""
    from videonarrator.cli import narration

    narration.narrate(
        video, product, checkpoint, out, cuts, storyline, rate, encoder, clip_model, config, backbone, device,
        precision, overrides or [],
    )  # fmt: skip


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="YAML file for the speaking rate: what --rate takes")],
    language: Annotated[str, typer.Option(help="zh or en")] = "zh",
    pairs: Annotated[
        Path | None, typer.Option(help="folder of clip.wav + clip.txt, or a list of audio<tab>text lines")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="annotation file or sample list: clip durations and narrations")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="command of a speech engine: {wav}, and {text} or {spoken} (in words)")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="what the engine is to say: annotation file, or lines of text")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="so many pairs at most (default: all; of an engine 300)")
    ] = None,
    voice: Annotated[str | None, typer.Option(help="name of the voice, for the file")] = None,
) -> None:
    """Measure how fast a voice speaks: from recordings, an annotation file, or a speech engine."""
    from videonarrator.cli import calibration

    calibration.calibrate(out, language, pairs, annotations, engine, texts, limit, voice)


@app.command()
def doctor(
    overrides: Overrides = None,
    checkpoint: Annotated[Path | None, typer.Option(help="checkpoint folder that `train` wrote")] = None,
    config: Annotated[
        str | None, typer.Option(help="settings of `train`: YAML file, or the name of one in configs/")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="in the backbone's place: a name in configs/shapes, or a model's config.json"),
    ] = None,
    backbone: Backbone = None,
    tokens: Annotated[
        list[int] | None, typer.Option(min=2, help="length of a sample, or prompt and output (default 2048)")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="samples, prompts at once (default: of the settings, 1)")
    ] = None,
    precision: Precision = "float32",
) -> None:
    """Say how large a narrator is, what memory it needs, and whether all is there; no weight is loaded."""
    from videonarrator.cli import doctor as verb

    verb.doctor(checkpoint, config, shape, backbone, tokens or [2048], batch, precision, overrides or [])


@sample.command("render")
def sample_render(
    out: Annotated[Path, typer.Option(help="folder for the videos")],
    data: Annotated[Path, typer.Option(help="the sample data set's folder")] = Path("data/sample"),
    english: Annotated[
        bool, typer.Option(help="the twelve English videos instead of the sixty Chinese")
    ] = False,
) -> None:
    """Render the sample data set's videos from their scene descriptions."""
    from videonarrator.cli import data as data_verbs

    data_verbs.render(data, out, english)
