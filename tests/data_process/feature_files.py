"""Published feature files, made up."""

import os
import pickle

import numpy as np


def array(rows=4, dim=3, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(dtype)


def save_frames(folder, video_id, numbers, dtype="float32", seed=0, **size):
    folder.mkdir(parents=True, exist_ok=True)
    saved = {number: array(seed=seed + number, dtype=dtype, **size) for number in numbers}
    for number, frame in saved.items():
        np.save(folder / f"{video_id}_{number:03d}.jpg.npy", frame)
    return saved


def save_clips(folder, video_id, clips, dtype="float32", seed=0):
    """clips: index -> number of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = {index: array(rows, seed=seed + index, dtype=dtype) for index, rows in clips.items()}
    for index, tokens in saved.items():
        (folder / f"{video_id}_{index}.pkl").write_bytes(pickle.dumps(tokens))
    return saved


def same(tensors, arrays):
    return all(
        str(tensor.dtype) == f"torch.{a.dtype}" and tensor.numpy().tobytes() == a.tobytes()
        for tensor, a in zip(tensors, arrays, strict=True)
    )


class Payload:
    """Unpickled by the plain pickle module, makes a file."""

    def __init__(self, marker, call=None):
        self.marker, self.call = marker, call or os.system

    def __reduce__(self):
        commands = {os.system: f"touch '{self.marker}'", eval: f"open({str(self.marker)!r}, 'w').close()"}
        return self.call, (commands[self.call],)
