"""Writes data/sample: annotations, scene descriptions and split lists, Chinese and English.

python scripts/sample/make_data.py [--out data/sample]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from data_process.annotations import write_annotations, write_split
from data_process.sample_world.english import english_videos
from data_process.sample_world.stories import SampleVideo, sample_videos


def write_scenes(samples: list[SampleVideo], path: Path) -> None:
    described = {
        f"{sample.video.id}.mp4": {
            "scenes": [scene.to_json() for scene in sample.scenes],
            "named": list(sample.named),
        }
        for sample in samples
    }
    path.write_text(json.dumps(described, ensure_ascii=False, indent=1) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("data/sample"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    samples, held_out = sample_videos()
    write_annotations(out / "annotations.json", [sample.video for sample in samples])
    write_scenes(samples, out / "scenes.json")
    write_split(out / "test_ids.txt", held_out)
    english = english_videos()
    write_annotations(out / "annotations_en.json", [sample.video for sample in english])
    write_scenes(english, out / "scenes_en.json")


if __name__ == "__main__":
    main()
