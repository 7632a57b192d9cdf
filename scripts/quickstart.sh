#!/usr/bin/env bash
# The whole job on a laptop, with the project's own small data set: render the videos, cut them, look at them,
# train a small narrator, let it narrate the twelve held-out videos, and score what it wrote.
# Everything lands in runs/sample; run again, it goes on where it stopped.
#   bash scripts/quickstart.sh [FOLDER [key=value ...]]     another folder; settings of the training
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PY="$(bash scripts/setup_env.sh)"
bin="$(dirname "$PY")"
run="${1:-runs/sample}"
overrides=("${@:2}")
data=data/sample

step() { echo "== $* ($((SECONDS / 60)) min $((SECONDS % 60)) s so far)" >&2; }
narrator() { "$bin/videonarrator" "$@" >&2; }

step "1/8 rendering 60 product videos"
narrator sample render --data "$data" --out "$run/videos"
step "2/8 cutting them into clips"
narrator cut "$run/videos" --out "$run/cuts"
step "3/8 looking at one frame a second (small BLIP-2)"
narrator extract "$run/videos" --encoder "$data/models/blip2" --out "$run/features"
step "4/8 clip tensors and sample lists"
narrator prepare --annotations "$data/annotations.json" --test-ids "$data/test_ids.txt" \
    --features "$run/features" --out "$run/prepared"
step "5/8 training (the long step)"
narrator train --config configs/sample/train.yaml "output=$run/train" \
    "data.samples=$run/prepared/train_shots.json" "data.clips=$run/prepared/clips" \
    "${overrides[@]}"
step "6/8 narrating the 12 held-out videos"
narrator infer --annotations "$data/annotations.json" --ids "$data/test_ids.txt" --features "$run/features" \
    --checkpoint "$run/train/checkpoint" --out "$run/held_out"
step "7/8 scoring"
if [ ! "$run/eval/results.json" -nt "$run/held_out/generations.jsonl" ]; then
    "$PY" -m metrics "$run/held_out/output.json" --annotations "$data/annotations.json" --out "$run/eval" >&2
fi
step "8/8 a new video with product facts of its own"
video="$(head -n 1 "$data/test_ids.txt")"
if [ ! "$run/narrated/script.md" -nt "$run/train/checkpoint/narrator.json" ]; then
    narrator narrate "$run/videos/$video" --product "$data/product.yaml" \
        --checkpoint "$run/train/checkpoint" --out "$run/narrated"
fi

"$PY" - "$run/eval/results.json" <<'PYTHON'
import json, sys

print("\nScores on the 12 held-out videos:")
for name, score in json.load(open(sys.argv[1], encoding="utf-8"))["metrics"].items():
    if score["value"] is not None:
        print(f"  {name:16} {score['value']:8.4f}   ({score['n_scored']} scored)")
PYTHON
echo "
Narrations:  $run/held_out/output.json   (a script per video: $run/held_out/scripts/)
Report:      $run/eval/report.md
A new video: $run/narrated/script.md"
step "done"
