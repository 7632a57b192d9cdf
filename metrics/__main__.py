"""`python -m metrics OUTPUT.json`: one JSON object on stdout, progress on stderr.

The other commands are in `metrics.commands`.

Exit codes: 0 all done; 2 wrong usage or input; 3 a metric failed, or one that was asked for by name has no
value; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from metrics.base import HIGHER_IS_BETTER
from metrics.commands import COMMANDS
from metrics.encoders import BACKENDS
from metrics.evaluation import RESAMPLES, evaluate
from metrics.report import check_folder, write
from metrics.scoring.context import TOKENIZER
from metrics.words.segment import SEGMENTERS
from videonarrator.quiet import quieten
from videonarrator.schema import GENERATED_KEY, NarratorError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m metrics",
        description="Scores of an output.json: results.json, samples.jsonl and report.md.",
        epilog=f"other commands: python -m metrics {' | '.join(COMMANDS)} (each with --help)",
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT.json", help="what inference wrote")
    what = parser.add_argument_group("what is scored")
    what.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="the set the output was made from: clip times, products, clips without output",
    )
    what.add_argument("--ids", type=Path, metavar="FILE", help="the videos that count, one id a line")
    what.add_argument(
        "--metrics",
        metavar="A,B,C",
        help=f"of {', '.join(HIGHER_IS_BETTER)}; bleu = all four (default: all that the inputs allow)",
    )
    what.add_argument(
        "--key", default=GENERATED_KEY, help="key of the narration in each entry (default: %(default)s)"
    )
    what.add_argument("--lang", choices=tuple(TOKENIZER), default="zh", help="default: zh")
    what.add_argument(
        "--upstream", action="store_true", help="the published arithmetic, its mistakes included"
    )
    words = parser.add_argument_group("words and tokens")
    words.add_argument(
        "--tokenizer",
        metavar="DIR_OR_FILE|chars|words",
        help="tokens of BLEU, METEOR and CIDEr: a SentencePiece model (as published), characters "
        "(zh default), or words (en default)",
    )
    words.add_argument(
        "--segmenter",
        choices=SEGMENTERS,
        default="jieba",
        help="Chinese words: jieba's default mode, its neural mode as it is, or that with normalised "
        "characters (default: jieba)",
    )
    words.add_argument(
        "--user-dict",
        type=Path,
        metavar="FILE",
        help="jieba user dictionary of knowledge points, `word [freq] [tag]` a line, for InfoSim, "
        "InfoDiverse and repetition",
    )
    encoders = parser.add_argument_group("EMScore, InfoSim, InfoDiverse")
    encoders.add_argument("--clip-model", metavar="DIR_OR_NAME", help="CLIP of EMScore")
    encoders.add_argument(
        "--clip-backend", choices=BACKENDS, default="transformers", help="default: transformers"
    )
    stills = encoders.add_mutually_exclusive_group()
    stills.add_argument(
        "--frame-features",
        type=Path,
        metavar="FILE",
        help="safetensors, <video id>_<clip index> -> [frames, dim]",
    )
    stills.add_argument(
        "--frames",
        type=Path,
        metavar="DIR",
        help="stills at one a second, <video id>_<number from 001>.jpg; their features are kept in --out",
    )
    encoders.add_argument("--text-model", metavar="DIR_OR_NAME", help="BERT of InfoSim and InfoDiverse")
    encoders.add_argument(
        "--idf", type=Path, metavar="FILE", help="knowledge points (default: those of the annotations)"
    )
    encoders.add_argument("--device", default="cpu", help="cpu, cuda, cuda:0, ... (default: cpu)")
    certainty = parser.add_argument_group("how sure the numbers are")
    certainty.add_argument(
        "--confidence",
        type=_resamples,
        default=0,
        metavar="N",
        help="95%% intervals from N bootstrap resamples of the videos",
    )
    certainty.add_argument(
        "--compare",
        type=Path,
        metavar="OTHER.json",
        help=f"paired bootstrap test against another output (N resamples, {RESAMPLES} without --confidence)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: eval/ beside OUTPUT.json")
    return parser


def _resamples(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 100:
        raise argparse.ArgumentTypeError(f"{text!r}: type a number of resamples, 100 or more (1000 is usual)")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own) and return the exit code."""
    quieten()
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if argv and argv[0] in COMMANDS:
            done = COMMANDS[argv[0]](argv[1:])
            print(done if isinstance(done, str) else json.dumps(done))
            return 0
        return _score(_parser().parse_args(argv))
    except NarratorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: no results were written", file=sys.stderr)
        return 130


def _score(args: argparse.Namespace) -> int:
    chosen = (
        None if args.metrics is None else [name.strip() for name in args.metrics.split(",") if name.strip()]
    )
    folder = args.out or args.output.parent / "eval"
    check_folder(folder)
    evaluation = evaluate(
        args.output,
        annotations=args.annotations,
        ids=args.ids,
        metrics=chosen,
        language=args.lang,
        key=args.key,
        upstream=args.upstream,
        tokenizer=args.tokenizer,
        segmenter=args.segmenter,
        user_dict=args.user_dict,
        clip_model=args.clip_model,
        clip_backend=args.clip_backend,
        frame_features=args.frame_features,
        frames=args.frames,
        frame_cache=folder / "frame_features.safetensors",
        text_model=args.text_model,
        idf=args.idf,
        device=args.device,
        confidence=args.confidence,
        compare=args.compare,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    paths = write(evaluation, folder)
    for kind, reasons in (("failed", evaluation.failed), ("left out", evaluation.left_out)):
        for name, reason in reasons.items():
            print(f"{name} {kind}: {reason}", file=sys.stderr)
    summary = {
        **{role: str(path) for role, path in paths.items()},
        "scores": {name: score.value for name, score in evaluation.scores.items()},
        "left_out": sorted(evaluation.left_out),
        "failed": sorted(evaluation.failed),
    }
    print(json.dumps(summary))
    return 3 if evaluation.failed or (chosen and evaluation.left_out) else 0


if __name__ == "__main__":
    sys.exit(main())
