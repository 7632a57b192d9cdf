"""jieba's neural mode ("paddle mode", the LAC tagger that ships with jieba) in numpy.

jieba runs it only on a PaddlePaddle of Python 3.7, and elsewhere falls back to its default mode without a
word. The network: character embeddings, two layers of bidirectional GRUs, a linear layer that gives emissions
[characters, 57 tags], and a linear-chain CRF whose best path says where words begin and what they are.
Checked word for word against the real thing's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from metrics.words.lac_parameters import HIDDEN, OOV, TAGS, LacParameters, load_parameters

BATCH_CHARACTERS = 1 << 13
"""A batch ends before it holds more characters than this (bounds memory: about 10 kB a character)."""

BLOCK = 8
"""Rows of one matrix product, everywhere: as fast as larger ones, too small for BLAS to start threads (which
on a busy machine wait for each other at every step), and the same sums whatever else is in the batch."""

GROUP = 16
"""Sequences that take their Viterbi steps together, so that scores of all transitions stay in the cache."""

SIGMOID_MAX = 13
"""PaddlePaddle cuts what goes into a GRU's sigmoid to [-40, 13]; the lower end is below float32's notice."""


class Packed:
    """Sequences, longest first, laid out step by step: row starts[t] + s is step t of sequence s.

    The rows of a step are the sequences that are long enough, so nothing is padded and nothing masked.
    lengths: of the sequences, descending, none zero. spans: (first row, end) of each step. index: of each
    row, where it stands in the sequences one after another. flip: of each row, the row of the same sequence
    with its steps reversed (flip[flip] is the identity).
    """

    def __init__(self, lengths: np.ndarray) -> None:
        counts = (lengths[:, None] > np.arange(lengths[0])).sum(0)
        ends = counts.cumsum()
        starts = ends - counts
        self.spans = list(zip(starts.tolist(), ends.tolist(), strict=True))
        step = np.repeat(np.arange(lengths[0]), counts)
        sequence = np.arange(ends[-1]) - starts[step]
        self.index = (lengths.cumsum() - lengths)[sequence] + step
        self.flip = starts[lengths[sequence] - 1 - step] + sequence


class Lac:
    """The tagger, float32 throughout. digest: SHA-256 over its parameter files.

    Emissions are within 1e-5 of PaddlePaddle's, so words could differ only where two paths' scores are closer
    than that. A text's result does not depend on the batch it is in: all products are of blocks of one size.
    """

    def __init__(self, parameters: LacParameters) -> None:
        # One hidden unit is dead: its weights are below float32's normal range, where products take ten times
        # as long. As zeros they give the same sums, bit for bit, for they are added to far larger biases.
        smallest = np.finfo(np.float32).smallest_normal
        variables = {name: np.where(abs(v) < smallest, 0, v) for name, v in parameters.variables.items()}
        self._embedding = variables["word_emb"]
        # sigmoid(x) = (1 + tanh(x / 2)) / 2: the halves, exact in floating point, are put into the weights.
        half = np.array([0.5, 0.5, 1], np.float32).reshape(3, 1, 1, 1, 1)
        self._inputs, self._biases, self._recurrent = [], [], []  # of each layer: [3, 2, 1, ..., 128]
        for pair in ((0, 1), (2, 3)):  # forward, backward
            fc_weights = [variables[f"fc_{k}.w_0"] for k in pair]
            biases = [variables[f"fc_{k}.b_0"] + variables[f"gru_{k}.b_0"] for k in pair]
            gru_weights = [_recurrent(variables[f"gru_{k}.w_0"]) for k in pair]
            self._inputs.append(half * _stack(fc_weights))
            self._biases.append(half * _stack(biases))
            self._recurrent.append(_stack(gru_weights) / 2)
        self._output, self._output_bias = variables["fc_4.w_0"], variables["fc_4.b_0"]
        self._start, self._end, transition = np.split(variables["crfw"], [1, 2])
        self._leaving = np.concatenate([transition.T, self._end])  # [into a tag, or the end; out of a tag]
        tag = np.arange(TAGS)
        # [shift, tag, sequence]: from tag + shift (modulo 57) to tag, the same for every sequence.
        shifted = transition[(tag + tag[:, None]) % TAGS, tag]
        self._shifted = np.repeat(shifted[:, :, None], GROUP, 2)
        self.digest = parameters.digest
        self._ids, self._oov = parameters.ids, parameters.ids[OOV]
        self._flags = [tag.split("-")[0] for tag in parameters.tags]
        self._begins = np.array([tag.endswith("-B") for tag in parameters.tags])
        self._outside = parameters.tags.index("O")

    @classmethod
    def load(cls, folder: str | Path | None = None) -> Lac:
        """The tagger of the installed jieba (or of another copy of its folder `lac_small`).

        Raises `NarratorError` where files are missing or damaged.
        """
        return cls(load_parameters(folder))

    def ids(self, text: str) -> list[int]:
        """One id for each character of the text without white space at its ends, as jieba has it."""
        return [self._ids.get(character, self._oov) for character in text.strip()]

    def tag(self, texts: Sequence[str], batch_size: int = 64) -> list[list[tuple[str, str]]]:
        """Of each text its words with their flags, as `jieba.posseg.cut(text, use_paddle=True)` gives them.

        As there, white space at the ends is gone, and every other character that the model does not know
        (blanks, line breaks, emoji, ...) comes out as one blank; the words together are as long as the
        stripped text. A text that is empty or all white space (where the original dies) has no words.

        batch_size: texts that are run together, those of like length; it decides nothing but speed.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: need at least 1")
        sequences = [self.ids(text) for text in texts]
        found: list[list[tuple[str, str]]] = [[] for _ in texts]
        order = sorted((i for i, ids in enumerate(sequences) if ids), key=lambda i: -len(sequences[i]))
        if not order:
            return found
        known, place = np.unique(np.concatenate([sequences[i] for i in order]), return_inverse=True)
        table = self._project(known)
        for batch in batches(order, sequences, batch_size):
            lengths = np.array([len(sequences[i]) for i in batch])
            size = lengths.sum()
            packed = Packed(lengths)
            path = np.empty(size, np.intp)
            path[packed.index] = self._decode(packed, self._emit(packed, table, place[:size][packed.index]))
            place = place[size:]
            for i, tags in zip(batch, np.split(path, lengths.cumsum()[:-1]), strict=True):
                found[i] = self._words(texts[i].strip(), tags)
        return found

    def emissions(self, ids: Sequence[int]) -> np.ndarray:
        """The network's output for one text: ids [characters], at least one -> [characters, 57], float32."""
        if not len(ids):
            raise ValueError("no ids: need at least one")
        packed = Packed(np.array([len(ids)]))
        return self._emit(packed, self._project(np.asarray(ids)), np.arange(len(ids)))

    def viterbi(self, emissions: np.ndarray) -> np.ndarray:
        """The CRF's best path: [characters, 57] -> tag ids [characters]; of equal paths the lower ids."""
        return self._decode(Packed(np.array([len(emissions)])), emissions)

    def _project(self, ids: np.ndarray) -> np.ndarray:
        """What goes into the first layer's GRUs, by character: [ids] -> [3, 2, at least as many, 128]."""
        return self._layer_inputs(0, self._embedding[np.pad(ids, (0, -len(ids) % BLOCK))])

    def _layer_inputs(self, layer: int, rows: np.ndarray) -> np.ndarray:
        """What goes into a layer's GRUs: [rows, k] or [2, rows, k], whole blocks -> [3, 2, rows, 128]."""
        inputs = np.matmul(_blocks(rows), self._inputs[layer])
        inputs += self._biases[layer]
        return inputs.reshape(3, 2, -1, HIDDEN)

    def _emit(self, packed: Packed, table: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Emissions [rows, 57]. table [3, 2, characters, 128]; place [rows]: of each, its character there."""
        flip = packed.flip
        inputs = np.empty((3, 2, len(place), HIDDEN), np.float32)
        for direction, places in enumerate((place, place[flip])):
            for kind in range(3):
                inputs[kind, direction] = table[kind, direction].take(places, 0)
        forward, backward = self._gru(packed, self._recurrent[0], inputs)
        # The second layer's input in both orders: what ran backwards is reversed where the other is not.
        space = np.zeros((2, len(place) + -len(place) % BLOCK, 2 * HIDDEN), np.float32)
        both = space[:, : len(place)]
        both[0, :, :HIDDEN], both[0, :, HIDDEN:] = forward, backward.take(flip, 0)
        both[1, :, :HIDDEN], both[1, :, HIDDEN:] = forward.take(flip, 0), backward
        forward, backward = self._gru(packed, self._recurrent[1], self._layer_inputs(1, space))
        both[0, :, :HIDDEN], both[0, :, HIDDEN:] = forward, backward.take(flip, 0)
        return (_blocks(space[0]) @ self._output + self._output_bias).reshape(-1, TAGS)[: len(place)]

    @staticmethod
    def _gru(packed: Packed, weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Both directions of a layer, the second one's rows reversed: [3, 2, rows, 128] -> [2, rows, 128].

        u, r = sigmoid(inputs + h @ weights), c = tanh(input + (r * h) @ weights), h + u * (c - h) is the next
        h, from h = 0. weights [3, 2, 1, 128, 128], like inputs: of u, r and c, in both directions. Rows of
        inputs beyond the last sequence's are not looked at.
        """
        hidden = np.empty((2, packed.spans[-1][1], HIDDEN), np.float32)
        blocks = -(-packed.spans[0][1] // BLOCK)
        space = np.zeros((4, 2, blocks, BLOCK, HIDDEN), np.float32)  # u, r, c, h
        rows = space.reshape(4, 2, blocks * BLOCK, HIDDEN)
        for first, end in packed.spans:
            blocks = -(-(end - first) // BLOCK)
            gates, reset, candidates, states = space[:2, :, :blocks], *space[1:, :, :blocks]
            gate, candidate, h = rows[:2, :, : end - first], *rows[2:, :, : end - first]
            np.matmul(states, weights[:2], out=gates)
            gate += inputs[:2, :, first:end]
            np.minimum(gate, SIGMOID_MAX / 2, out=gate)
            np.tanh(gate, out=gate)
            gate += 1  # twice the sigmoid
            gate[1] *= h
            np.matmul(reset, weights[2], out=candidates)
            candidate += inputs[2, :, first:end]
            np.tanh(candidate, out=candidate)
            candidate -= h
            candidate *= gate[0]
            candidate *= 0.5
            h += candidate
            hidden[:, first:end] = h
        return hidden

    def _decode(self, packed: Packed, emissions: np.ndarray) -> np.ndarray:
        """Viterbi for all sequences: [rows, 57] -> tag ids [rows].

        Only best scores are kept on the way there; on the way back the one step that matters is done again.
        """
        emissions = np.ascontiguousarray(emissions.T)
        best = np.empty_like(emissions)  # [tags, rows]: score of the best path that ends there
        width = packed.spans[0][1]
        for start in range(0, width, GROUP):
            self._best_scores(packed, start, min(GROUP, width - start), emissions, best)
        path = np.empty(emissions.shape[1], np.intp)
        after = np.full(width, TAGS)
        for first, end in reversed(packed.spans):
            scores = best[:, first:end].T + self._leaving[after[: end - first]]
            path[first:end] = after[: end - first] = scores.argmax(1)
        return path

    def _best_scores(
        self, packed: Packed, start: int, width: int, emissions: np.ndarray, best: np.ndarray
    ) -> None:
        """Fill `best` [57, rows] for the `width` sequences from number `start` on.

        Scores [57, 57, width] of all transitions are one sum of long rows: tags stand twice below each other,
        so that the tags from number k on, modulo 57, are a window of them, and k is the shift in `_shifted`.
        """
        twice = np.zeros((2, TAGS, width), np.float32)
        score = twice[0]
        windows = sliding_window_view(twice.reshape(-1), TAGS * width)[::width][:TAGS]
        transitions = self._shifted[:, :, :width].reshape(TAGS, TAGS * width)
        scores = np.empty_like(transitions)
        for step, (first, end) in enumerate(packed.spans):
            rows = slice(first + start, min(first + start + width, end))
            n = rows.stop - rows.start
            if n <= 0:
                break
            if step:
                twice[1] = score
                np.add(windows, transitions, out=scores)
                np.maximum.reduce(scores, axis=0, out=score.reshape(-1))
            else:
                score[:] = self._start.T
            score[:, :n] += emissions[:, rows]
            best[:, rows] = score[:, :n]

    def _words(self, text: str, tags: np.ndarray) -> list[tuple[str, str]]:
        """A word begins at the first character, at a tag that begins one, and at O after another tag."""
        outside = tags == self._outside
        begins = self._begins[tags]
        begins[0] = True
        begins[1:] |= outside[1:] & ~outside[:-1]
        known = "".join(character if character in self._ids else " " for character in text)
        starts = begins.nonzero()[0].tolist()
        flags = [self._flags[tag] for tag in tags[begins].tolist()]
        return [
            (known[start:end], flag)
            for start, end, flag in zip(starts, [*starts[1:], len(text)], flags, strict=True)
        ]


def batches(order: list[int], sequences: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """`order` in parts of at most batch_size texts and `BATCH_CHARACTERS` characters (or of one text)."""
    batch: list[int] = []
    size = 0
    for i in order:
        if batch and (len(batch) == batch_size or size + len(sequences[i]) > BATCH_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(i)
        size += len(sequences[i])
    yield batch


def _recurrent(weights: np.ndarray) -> np.ndarray:
    """A GRU's recurrent weights [128, 3 * 128], columns of update, reset and candidate.

    The variable is one buffer that holds two matrices, [128, 256] of update and reset, then [128, 128].
    """
    gates, candidate = np.split(weights.ravel(), [2 * HIDDEN * HIDDEN])
    return np.concatenate([gates.reshape(HIDDEN, 2 * HIDDEN), candidate.reshape(HIDDEN, HIDDEN)], 1)


def _stack(directions: list[np.ndarray]) -> np.ndarray:
    """[k, 3 * 128] of both directions -> [3, 2, 1, k, 128], so that one product serves all blocks of both."""
    parts = np.stack(directions).reshape(2, -1, 3, HIDDEN).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(parts)[:, :, None]


def _blocks(rows: np.ndarray) -> np.ndarray:
    """[..., rows, k] -> [..., blocks, 8, k]."""
    return rows.reshape(*rows.shape[:-2], -1, BLOCK, rows.shape[-1])
