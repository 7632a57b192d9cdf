"""Whatever lies in a file that calls itself a feature: it is refused or named, and never run."""

import contextlib
import pickle
import random
import struct

import numpy as np
import pytest
from feature_files import Payload, array

from data_process.published_features import read_npy, read_pickle
from videonarrator.schema import NarratorError

# ------------------------------------------------------------------------- what must not be run


class State:
    """An array whose state holds something."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        reconstruct, arguments, _ = array().__reduce__()
        return reconstruct, arguments, self.state


class Called:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def payloads(marker):
    """Name -> object whose plain unpickling runs something (or tries to)."""
    bad = Payload(marker)
    objects = np.empty(2, dtype=object)
    objects[:] = [bad, 1.0]
    nested = np.empty(1, dtype=object)
    nested[0] = objects
    table = np.zeros(2, dtype=[("a", "f4"), ("b", object)])
    table["b"] = bad
    good = array().__reduce__()[2]
    return {
        "alone": bad,
        "eval": Payload(marker, eval),
        "in a list": [array(), bad],
        "in a dict": {"features": array(), "more": bad},
        "key of a dict": {bad: array()},
        "object array": objects,
        "nested object arrays": nested,
        "field of a table": table,
        "state of an array": State(bad),
        "data of an array": State((*good[:4], bad)),
        "shape of an array": State((good[0], bad, *good[2:])),
        "dtype of an array": State((*good[:2], bad, *good[3:])),
        "list as data": State((*good[:4], [bad] * 12)),
        "argument of a good name": Called(array().__reduce__()[0], np.ndarray, (bad,), b"b"),
    }


def test_the_payloads_do_something(tmp_path):
    """The control: plain unpickling runs them all, if it gets as far as building them."""
    ran = set()
    for name, payload in payloads(tmp_path / "ran").items():
        with contextlib.suppress(TypeError, ValueError, AttributeError):
            pickle.loads(pickle.dumps(payload))  # noqa: S301
        if (tmp_path / "ran").exists():
            ran.add(name)
            (tmp_path / "ran").unlink()
    assert ran == set(payloads(tmp_path))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", payloads("x"))
def test_payloads_in_pickles_are_refused(tmp_path, name, protocol):
    file, marker = tmp_path / "v_0.pkl", tmp_path / "ran"
    file.write_bytes(pickle.dumps(payloads(marker)[name], protocol=protocol))
    with pytest.raises(NarratorError, match=r"v_0\.pkl holds more .* is refused; nothing in it was run"):
        read_pickle(file)
    assert not marker.exists()


def written(*opcodes):
    return b"\x80\x04" + b"".join(opcodes) + b"."


def word(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


def name(module, attribute):
    return word(module) + word(attribute) + b"\x93"


NDARRAY, DTYPE = name("numpy", "ndarray"), name("numpy", "dtype")
RECONSTRUCT = name("numpy._core.multiarray", "_reconstruct")
MADE = RECONSTRUCT + NDARRAY + b"K\x00\x85C\x01b\x87R"  # an array without state
FLOAT = DTYPE + word("f4") + b"\x89\x88\x87R"

HANDWRITTEN = {
    "a dotted name": written(name("numpy", "ndarray.__class__.__base__.__subclasses__"), b")R"),
    "a name below numpy": written(name("numpy", "load"), word("/etc/passwd"), b"\x85R"),
    "getattr": written(name("builtins", "getattr"), NDARRAY, word("tofile"), b"\x86R"),
    "numpy's scalar": written(name("numpy._core.multiarray", "scalar"), b")R"),
    "torch": written(name("torch._utils", "_rebuild_tensor_v2"), b")R"),
    "a class by its own name": written(name("data_process.published_features", "_Array"), b")\x81"),
    "pickle again": written(name("pickle", "loads"), b"C\x01.\x85R"),
    "another class of array": written(RECONSTRUCT, DTYPE, b"K\x00\x85C\x01b\x87R"),
    "ndarray called": written(NDARRAY, b"K\x01\x85\x85R"),
    "a function is changed": written(DTYPE, b"N}", word("__defaults__"), b")s\x86b"),
    "a function gets a state": written(RECONSTRUCT, b"}", word("x"), b"K\x01sb"),
    "an array gets an attribute": written(MADE, b"N}", word("array"), word("x"), b"s\x86b"),
    "a dtype of objects": written(DTYPE, word("O8"), b"\x89\x88\x87R"),
    "a dtype of everything": written(DTYPE, word("V8"), b"\x89\x88\x87R"),
    "a dtype with fields": written(
        FLOAT, b"(K\x03", word("<"), b"N", word("a"), b"}J\xff\xff\xff\xffK\x00tb"
    ),
    "bytes by a codec": written(name("_codecs", "encode"), word("x"), word("zip"), b"\x86R"),
    "something outside": written(b"K\x01Q"),
}
DAMAGED = {
    "an extension code": written(b"\x82\x01"),
    "no instance": written(NDARRAY, b")\x81"),
    "items of an array": written(MADE, b"K\x00K\x01s"),
    "appended to an array": written(MADE, b"(K\x01e"),
    "an endless length": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x",
    "an endless array": written(
        MADE, b"(K\x01\x8a\x08" + struct.pack("<q", 2**60), b"K\x04\x86", FLOAT, b"\x89C\x04abcdt", b"b"
    ),
    "no array": written(FLOAT, b"0N"),
    "half made": written(MADE),
    "a dtype": written(FLOAT),
    "bytes": written(b"C\x04abcd"),
    "a list of numbers": written(b"]G" + struct.pack(">d", 1.0) + b"a"),
    "empty": b"",
    "text": b"not a pickle",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("kind", HANDWRITTEN)
def test_handwritten_pickles_are_refused(tmp_path, kind):
    file = tmp_path / "v_0.pkl"
    file.write_bytes(HANDWRITTEN[kind])
    with pytest.raises(NarratorError, match=r"v_0\.pkl holds more .* is refused; nothing in it was run"):
        read_pickle(file)
    file.write_bytes(pickle.dumps(array()))  # what came before has changed nothing
    assert np.array_equal(read_pickle(file), array())


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_pickles_are_named(tmp_path, kind):
    file = tmp_path / "v_0.pkl"
    file.write_bytes(DAMAGED[kind])
    with pytest.raises(NarratorError, match=r"v_0\.pkl (cannot be read as|holds \w+, expected)"):
        read_pickle(file)


def test_payloads_in_npy_are_refused(tmp_path):
    file, marker = tmp_path / "v_001.jpg.npy", tmp_path / "ran"
    for kind in ("object array", "nested object arrays", "field of a table"):
        np.save(file, payloads(marker)[kind], allow_pickle=True)
        np.load(file, allow_pickle=True)  # the control
        assert marker.exists()
        marker.unlink()
        with pytest.raises(NarratorError, match=r"v_001\.jpg\.npy cannot be read as a \.npy file of numbers"):
            read_npy(file)
    file.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(NarratorError, match=r"v_001\.jpg\.npy is no \.npy file and not opened as anything"):
        read_npy(file)
    np.savez(tmp_path / "v", array())
    (tmp_path / "v.npz").rename(file)
    with pytest.raises(NarratorError, match=r"is no \.npy file"):
        read_npy(file)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_harmed_bytes_give_an_array_or_one_error(tmp_path, protocol):
    """Whatever bytes change, nothing but an array of floats comes out, or a NarratorError."""
    chance, whole = random.Random(protocol), pickle.dumps(array(), protocol=protocol)
    file, errors = tmp_path / "v_0.pkl", 0
    for _ in range(300):
        harmed = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            harmed[chance.randrange(len(harmed))] = chance.randrange(256)
        file.write_bytes(harmed[: chance.choice([len(harmed), chance.randrange(len(harmed))])])
        try:
            assert read_pickle(file).ndim == 2
        except NarratorError:
            errors += 1
    assert errors > 100
    np.save(tmp_path / "v.npy", array())
    whole, errors = (tmp_path / "v.npy").read_bytes(), 0
    for _ in range(300):
        harmed = bytearray(whole)
        harmed[chance.randrange(min(len(harmed), 80))] = chance.randrange(256)
        (tmp_path / "v.npy").write_bytes(harmed)
        try:
            assert read_npy(tmp_path / "v.npy").ndim == 2
        except NarratorError:
            errors += 1
    assert errors > 100
