"""output.json exactly as the published inference writes it, its mistakes included (for comparison with it).

Entries are numbered among the kept clips. The reference is what stands behind "{rank}." in the clip's line of
the prompt: it is cut where it holds that itself, and where a clip before was left out (so that number and
rank differ) nothing is found; the entry then repeats the reference found last, be it another video's, and
none of the video's clips has a narration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from videonarrator.prompt import published_wording
from videonarrator.schema import ScriptLine, Video, output_entry, output_key


def published_output(
    videos: Sequence[Video], written: Mapping[str, Sequence[ScriptLine]]
) -> dict[str, dict[str, str]]:
    """The entries of `videos` in order. written: of each video, the lines of its kept clips in order."""
    output: dict[str, dict[str, str]] = {}
    found = ""
    for video in videos:
        entries: dict[str, dict[str, str]] = {}
        whole = True
        for rank, line in enumerate(written[video.id], 1):
            clip = video.clips[line.clip]
            parts = published_wording(f"{line.clip + 1}.{clip.text}").split(f"{rank}.")
            whole = whole and len(parts) > 1
            found = parts[1] if len(parts) > 1 else found
            entries[output_key(video.id, rank - 1)] = output_entry(found, clip.label, line.label, line.text)
        output |= entries if whole else {key: {"gt": entry["gt"]} for key, entry in entries.items()}
    return output
