"""`python -m metrics OUTPUT.json`: one JSON object on stdout, progress on stderr.

Exit codes: 0 all done; 2 wrong usage or input; 3 a metric failed, or one that was asked for by name has no
value.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from metrics.base import HIGHER_IS_BETTER
from metrics.evaluation import UNIT, evaluate
from metrics.report import check_folder, write
from metrics.segment import SEGMENTERS
from videonarrator.schema import GENERATED_KEY, NarratorError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m metrics",
        description="Scores of an output.json: results.json, samples.jsonl and report.md.",
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT.json", help="what inference wrote")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="the set the output was made from")
    parser.add_argument(
        "--tokenizer",
        metavar="DIR_OR_FILE|chars|words",
        help="tokens of BLEU and CIDEr: a SentencePiece model (as published), characters (zh default), "
        "or words (en default)",
    )
    parser.add_argument(
        "--metrics", metavar="A,B,C", help=f"default: all of {', '.join(HIGHER_IS_BETTER)}; bleu = all four"
    )
    parser.add_argument("--lang", choices=tuple(UNIT), default="zh", help="default: zh")
    parser.add_argument(
        "--key", default=GENERATED_KEY, help="key of the narration in each entry (default: %(default)s)"
    )
    parser.add_argument(
        "--segmenter", choices=SEGMENTERS, default="jieba", help="Chinese words (default: jieba)"
    )
    parser.add_argument(
        "--user-dict", type=Path, metavar="FILE", help="jieba user dictionary, `word [freq] [tag]` a line"
    )
    parser.add_argument(
        "--upstream", action="store_true", help="the published arithmetic, its oddities included"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: eval/ beside OUTPUT.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own) and return the exit code."""
    args = _parser().parse_args(argv)
    chosen = (
        None if args.metrics is None else [name.strip() for name in args.metrics.split(",") if name.strip()]
    )
    folder = args.out or args.output.parent / "eval"
    try:
        check_folder(folder)
        evaluation = evaluate(
            args.output,
            annotations=args.annotations,
            tokenizer=args.tokenizer,
            metrics=chosen,
            language=args.lang,
            key=args.key,
            segmenter=args.segmenter,
            user_dict=args.user_dict,
            upstream=args.upstream,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
        paths = write(evaluation, folder)
    except NarratorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
