"""The verb `infer`: annotated videos, in one process or many, into one output.json."""

from __future__ import annotations

import json
import time
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import typer
import yaml

from data_process.annotations import read_annotations, read_split
from data_process.feature_store import ClipStore
from data_process.files import write_json
from videonarrator.cli import FAILED, PARTLY, check_writable, say
from videonarrator.cli.devices import device_and_dtype
from videonarrator.cli.generation_log import GenerationLog, digest_of
from videonarrator.cli.processes import Processes, shares
from videonarrator.cli.visual_source import Store, check_features, open_features, tasks_of, unusable, work_of
from videonarrator.config import config_path, load_config, load_template, save_config
from videonarrator.export.published_output import published_output
from videonarrator.export.script import write_script
from videonarrator.schema import NarratorError, Script, ScriptLine, Video, output_entry, output_key
from videonarrator.settings import DecodingSettings, as_published
from videonarrator.speech import SpeakingRate, read_rate


def infer(
    annotations: Path,
    ids: Path,
    features: Path,
    checkpoint: Path,
    out: Path,
    offered_label: bool,
    rate: str | None,
    config: str | None,
    backbone: str | None,
    device: str,
    precision: str,
    compat: str,
    overrides: list[str],
) -> None:
    processes = Processes()
    with processes.telling_once():
        settings = _settings(config, compat, overrides)
        place, dtype = device_and_dtype(processes.device(device), precision)
        videos = read_annotations(annotations)
        wanted = read_split(ids, videos)
        store = open_features(features)
        from videonarrator.checkpoint import load_checkpoint, read_info

        made_from = store.settings["features"] if isinstance(store, ClipStore) else store.settings
        check_features(read_info(checkpoint).features, made_from, str(features), str(checkpoint))
        speaking = read_rate(rate, load_template(checkpoint / "prompt.yaml").language)
        check_writable(out)
        digest = digest_of(settings, offered_label, precision, checkpoint, speaking)
        name = "generations_label" if offered_label else "generations"
        alone = processes.number == 1
        log = GenerationLog(out, name, None if alone else processes.index, digest, videos, store)
        published = compat == "upstream"
        run = Run(
            processes, videos, wanted, store, settings, offered_label, speaking, published, out, log
        )  # fmt: skip

        def load() -> Any:
            return load_checkpoint(checkpoint, backbone=backbone, device=place, dtype=dtype)

        processes.join()
        run.narrate(load)
        code = run.conclude()
        processes.leave()
    if code:
        raise typer.Exit(code)


def _settings(config: str | None, compat: str, overrides: Sequence[str]) -> DecodingSettings:
    """Defaults < file < words; `compat` upstream has other defaults."""
    if compat not in ("none", "upstream"):
        raise NarratorError(f"unknown --compat {compat!r}: none or upstream")
    settings = load_config(DecodingSettings, config, overrides)
    if compat == "none":
        return settings
    stated = yaml.safe_load(config_path(config).read_text("utf-8")) if config else None
    defaults = asdict(DecodingSettings())
    published = {
        name: value
        for name, value in asdict(as_published(DecodingSettings())).items()
        if value != defaults[name] and name not in (stated or {})
    }
    first = [f"{name}={json.dumps(value)}" for name, value in published.items()]
    return load_config(DecodingSettings, config, [*first, *overrides])


@dataclass
class Run:
    """What is to be narrated and with what; `failed`: of the videos that could not be, id -> reason."""

    processes: Processes
    videos: Mapping[str, Video]
    wanted: Sequence[str]
    store: Store
    settings: DecodingSettings
    offered_label: bool
    speaking: SpeakingRate
    published: bool
    out: Path
    log: GenerationLog
    failed: dict[str, str] = field(default_factory=dict)

    # -------------------- writing

    def narrate(self, load: Any) -> None:
        """Narrate this process's share of the videos that wait. load: gives the checkpoint, where needed."""
        share = self.processes.from_first(self._shares)[self.processes.index]
        self.failed = unusable([self.videos[video_id] for video_id in share], self.store, self.offered_label)
        for reason in self.failed.values():
            say(f"failed: {reason}")
        usable = [video_id for video_id in share if video_id not in self.failed]
        total = sum(self.processes.gathered(len(usable)))
        checkpoint = load() if usable else None
        if total and self.processes.index == 0:
            from videonarrator.environment import write_environment

            write_environment(self.out)
            save_config(self.settings, self.out / "decoding.yaml")
        if checkpoint is not None:
            self._narrate(checkpoint, usable, total)

    def _shares(self) -> list[list[str]]:
        """The videos that wait, as each process gets them."""
        done = self.log.finished()
        waiting = [video_id for video_id in self.wanted if video_id not in done]
        return shares(waiting, lambda one: work_of(self.videos[one], self.store), self.processes.number)

    def _narrate(self, checkpoint: Any, usable: Sequence[str], total: int) -> None:
        """Write down each video as soon as it is done. total: videos of all processes together."""
        from videonarrator.generation.engine import narrate_videos

        asked: dict[str, list[Any]] = {}
        began = time.monotonic()
        videos = self._tasks(checkpoint, usable, asked)
        for video_id, results in narrate_videos(checkpoint, videos, self.settings, self.speaking):
            tasks = asked.pop(video_id)
            if isinstance(results, NarratorError):
                self._fail(video_id, results)
            else:
                language = checkpoint.template.language
                self.log.append(self._entry(self.videos[video_id], tasks, results, language))
            done = self.processes.count()
            seconds = time.monotonic() - began
            left = timedelta(seconds=round(seconds / done * (total - done)))
            say(f"narrated {done}/{total} videos  {60 * done / seconds:.1f} a minute  {left} left")

    def _tasks(self, checkpoint: Any, usable: Sequence[str], asked: dict[str, list[Any]]) -> Iterator[Any]:
        """Each video's `VideoTask`, read when it is asked for; `asked` gets its clips."""
        from videonarrator.generation.jobs import VideoTask

        for video_id in usable:
            if self.processes.orphaned:
                raise KeyboardInterrupt
            video = self.videos[video_id]
            try:
                tasks = tasks_of(checkpoint, video, self.store, self.offered_label)
            except (NarratorError, OSError) as error:
                self._fail(video_id, error)
                self.processes.count()
                continue
            asked[video_id] = tasks
            yield VideoTask(video_id, video.product, tasks, len(video.clips))

    def _fail(self, video_id: str, error: Exception) -> None:
        self.failed[video_id] = f"video {video_id}: {error}"
        say(f"failed: {self.failed[video_id]}")

    def _entry(
        self, video: Video, tasks: Sequence[Any], results: Sequence[Any], language: str
    ) -> dict[str, Any]:
        """What the log says of a finished video."""
        from videonarrator.tasks import script_of

        script = script_of(video, tasks, results, language, self.speaking)
        return {
            "video": video.id,
            "seed": self.settings.seed,
            "lines": [asdict(line) for line in script.lines],
            "raw": {str(result.index): result.raw for result in results},
            "attempts": {str(result.index): result.attempt for result in results},
            "scores": {str(result.index): result.score for result in results},
            "skipped": {str(index): reason for index, reason in script.skipped.items()},
        }

    # -------------------- results

    def conclude(self) -> int:
        """Wait for all, and let the first process write what came of it; the exit code."""
        of_all = ChainMap(*self.processes.gathered(self.failed))
        self.failed = {video_id: of_all[video_id] for video_id in self.wanted if video_id in of_all}
        return self.processes.from_first(self._conclude)

    def _conclude(self) -> int:
        """Write output.json and the scripts from the logs, and print the summary."""
        if len(self.failed) == len(self.wanted):
            return FAILED
        done = self.log.finished()
        finished = [self.videos[video_id] for video_id in self.wanted if video_id in done]
        scripts = {video.id: script_in(done[video.id], video) for video in finished}
        flagged: dict[str, list[str]] = {}
        output: dict[str, Any] = {}
        for video in finished:
            script = scripts[video.id]
            write_script(script, self.out / "scripts" / video.id)
            for rank, line in enumerate(script.lines):
                key = output_key(video.id, rank if self.published else line.clip)
                clip = video.clips[line.clip]
                output[key] = output_entry(clip.text, clip.label, line.label, line.text)
                if line.flaws:
                    flagged[key] = output[key]["flaws"] = list(line.flaws)
        if self.published:
            output = published_output(finished, {name: script.lines for name, script in scripts.items()})
        target = self.out / ("output_label.json" if self.offered_label else "output.json")
        write_json(target, output)
        first = self.settings.candidates if self.settings.length == "best_of" else 1
        result = {
            "output": str(target),
            "videos": len(self.wanted),
            "clips": len(output),
            "skipped": {video.id: s for video in finished if (s := done[video.id]["skipped"])},
            "rewritten": sum(n >= first for video in finished for n in done[video.id]["attempts"].values()),
            "fit": Counter(line.fit for script in scripts.values() for line in script.lines),
            "flagged": flagged,
            "failed": self.failed,
        }
        print(json.dumps(result, ensure_ascii=False), flush=True)
        empty = not self.published and any("empty" in flaws for flaws in flagged.values())
        return PARTLY if self.failed or empty else 0


def script_in(entry: Mapping[str, Any], video: Video) -> Script:
    """The script that an entry of the log holds."""
    lines = tuple(ScriptLine(**{**line, "flaws": tuple(line["flaws"])}) for line in entry["lines"])
    skipped = {int(index): reason for index, reason in entry["skipped"].items()}
    return Script(video.id, video.product, lines, skipped)
