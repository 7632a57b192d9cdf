"""How long speech lasts in an audio file: from the first sound to the last."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from videonarrator.schema import NarratorError

SILENCE = 0.01
"""A window this many times quieter than the loudest one (-40 dB) is silent."""

WINDOW_SECONDS = 0.01


def speech_seconds(path: str | Path) -> float:
    """Seconds of speech in an audio file, silence at both ends left out (to 10 ms); pauses inside count.

    Raises `NarratorError` for a file that cannot be read, holds no audio, or is silent.
    """
    samples, rate = read_audio(path)
    width = max(1, round(rate * WINDOW_SECONDS))
    windows = np.append(samples, np.zeros(-len(samples) % width, np.float32)).reshape(-1, width)
    loudness = np.sqrt((windows.astype(np.float64) ** 2).mean(axis=1))  # [windows]
    if not len(loudness) or loudness.max() == 0:
        raise NarratorError(f"{path} holds no sound")
    heard = np.flatnonzero(loudness > SILENCE * loudness.max())
    return float((heard[-1] + 1 - heard[0]) * width / rate)


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """Samples (float32 [samples], channels averaged) and samples a second of an audio file.

    WAV of 16 bits is read here, everything else (also the sound of a video) by PyAV. Raises `NarratorError`.
    """
    path = Path(path)
    if not path.is_file():
        raise NarratorError(f"no audio file {path}")
    try:
        with wave.open(str(path)) as file:
            if file.getsampwidth() == 2:
                data = np.frombuffer(file.readframes(file.getnframes()), "<i2")
                channels = data[: len(data) // file.getnchannels() * file.getnchannels()]
                return (channels.reshape(-1, file.getnchannels()).mean(axis=1) / 2**15).astype(
                    np.float32
                ), file.getframerate()
    except (wave.Error, EOFError):
        pass
    return _decode(path)


def _decode(path: Path) -> tuple[np.ndarray, int]:
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise NarratorError(f"{path} holds no audio")
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="flt", layout="mono")
            frames = [out for frame in container.decode(stream) for out in resampler.resample(frame)]
    except (FFmpegError, OSError) as error:
        raise NarratorError(f"cannot read {path} as audio: {error.strerror or error}") from error
    if not frames:
        raise NarratorError(f"{path} holds no audio")
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]), frames[0].sample_rate
