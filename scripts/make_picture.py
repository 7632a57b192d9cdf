"""Draws docs/sample.png: stills of held-out sample videos with the labels and narrations the model wrote.

Needs a font with Chinese characters (on Debian and Ubuntu: apt install fonts-noto-cjk).

    python scripts/make_picture.py --output runs/sample/held_out/output.json --videos runs/sample/videos
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data_process.annotations import read_annotations
from data_process.frames import read_frames
from videonarrator.schema import GENERATED_KEY, output_key

WIDTH, HEIGHT, MARGIN, TEXT = 250, 188, 12, 104


def chinese_font() -> str:
    """Path of a font that has Chinese characters, as fontconfig knows it."""
    try:
        found = subprocess.run(
            ["fc-match", "-f", "%{file}", ":lang=zh-cn"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        sys.exit("error: no fontconfig here; give --font FILE")
    return found.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, default=Path("data/sample/annotations.json"))
    parser.add_argument("--ids", nargs="+", help="videos to show (default: the first three of the output)")
    parser.add_argument("--font", default=None)
    parser.add_argument("--out", type=Path, default=Path("docs/sample.png"))
    options = parser.parse_args()
    written = json.loads(options.output.read_text("utf-8"))
    ids = options.ids or list(dict.fromkeys(key.rpartition("_")[0] for key in written))[:3]
    videos = read_annotations(options.annotations)
    font_file = options.font or chinese_font()
    font, small = ImageFont.truetype(font_file, 16), ImageFont.truetype(font_file, 13)
    columns = max(len(videos[video_id].clips) for video_id in ids)
    row = HEIGHT + TEXT + MARGIN
    sheet = Image.new("RGB", (columns * (WIDTH + MARGIN) + MARGIN, len(ids) * row + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for line, video_id in enumerate(ids):
        clips = videos[video_id].clips
        stills = read_frames(options.videos / f"{video_id}.mp4", [int(clip.start) + 1 for clip in clips])
        for column, clip in enumerate(clips):
            left, top = MARGIN + column * (WIDTH + MARGIN), MARGIN + line * row
            still = Image.fromarray(stills[int(clip.start) + 1]).resize((WIDTH, HEIGHT))
            sheet.paste(still, (left, top))
            entry = written[output_key(video_id, column)]
            head = f"{clip.start:.0f}-{clip.end:.0f} s  {entry['out_label']}"
            draw.text((left, top + HEIGHT + 4), head, fill=(110, 110, 110), font=small)
            text, fit = entry[GENERATED_KEY], (WIDTH - 4) // 16
            lines = [text[start : start + fit] for start in range(0, len(text), fit)]
            draw.text((left, top + HEIGHT + 24), "\n".join(lines), fill=(20, 20, 20), font=font)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
