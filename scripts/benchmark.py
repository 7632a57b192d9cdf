"""Speed and memory of this project, measured: `python scripts/benchmark.py {metrics,narrate,train} --help`.

Both sides of a comparison are run in turn in one run; a figure is the median of several. Needs the reference
data ($VIDEONARRATOR_SHARED, by default ../shared); `narrate` can do without.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmarks import metrics, narrate, train

from videonarrator.schema import NarratorError

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = {"metrics": metrics, "narrate": narrate, "train": train}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(os.environ.get("VIDEONARRATOR_SHARED") or ROOT.parent / "shared")
    kinds = parser.add_subparsers(dest="what", required=True)
    for name, module in BENCHMARKS.items():
        kind = kinds.add_parser(
            name,
            help=str(module.__doc__).splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        kind.add_argument("--runs", type=int, default=3, help="runs whose median is told (default: 3)")
        module.add_arguments(kind)
    args = parser.parse_args()
    data = shared / "data" if (shared / "data").is_dir() else None
    if not data and args.what != "narrate":
        parser.error(f"no reference data in {shared}: set VIDEONARRATOR_SHARED to the folder with data/")
    try:
        print(json.dumps(BENCHMARKS[args.what].run(args, data), indent=1))
    except NarratorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
