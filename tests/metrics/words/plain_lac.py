"""LAC's network written again, plain and slow, and texts to try it on."""

import numpy as np
from hypothesis import strategies as st

from metrics.words.lac_parameters import OOV, LacParameters

H = 128
TEXT = st.text(
    st.one_of(st.sampled_from("这款面霜质地轻薄，。！？３aＡB百度公司 \t\n\u3000😀한１2"), st.characters()),
    max_size=24,
)


class Plain:
    """LAC.md word by word: one text, one step after the other, in float64."""

    def __init__(self, parameters: LacParameters) -> None:
        self.parameters = parameters
        self.v = {name: value.astype(float) for name, value in parameters.variables.items()}
        self.characters = {number: entry for entry, number in parameters.ids.items()}

    def emissions(self, ids: list[int]) -> np.ndarray:
        x = self.v["word_emb"][ids]
        for forward, backward in ((0, 1), (2, 3)):
            x = np.concatenate([self.gru(x, forward), self.gru(x[::-1], backward)[::-1]], axis=1)
        return x @ self.v["fc_4.w_0"] + self.v["fc_4.b_0"]

    def gru(self, x: np.ndarray, k: int) -> np.ndarray:
        buffer = self.v[f"gru_{k}.w_0"].ravel()
        gate_weights, candidate_weights = (
            buffer[: 2 * H * H].reshape(H, 2 * H),
            buffer[2 * H * H :].reshape(H, H),
        )
        h, states = np.zeros(H), []
        for row in x:
            z = row @ self.v[f"fc_{k}.w_0"] + self.v[f"fc_{k}.b_0"] + self.v[f"gru_{k}.b_0"][0]
            g = 1 / (1 + np.exp(-np.clip(z[: 2 * H] + h @ gate_weights, -40, 13)))
            update, reset = g[:H], g[H:]
            c = np.tanh(z[2 * H :] + (reset * h) @ candidate_weights)
            h = (1 - update) * h + update * c
            states.append(h)
        return np.array(states)

    def viterbi(self, emissions: np.ndarray) -> list[int]:
        start, end, transition = self.v["crfw"][0], self.v["crfw"][1], self.v["crfw"][2:]
        alpha, before = start + emissions[0], []
        for row in emissions[1:]:
            scores = alpha[:, None] + transition
            before.append(scores.argmax(axis=0))
            alpha = row + scores.max(axis=0)
        path = [int((alpha + end).argmax())]
        for choice in reversed(before):
            path.append(int(choice[path[-1]]))
        return path[::-1]

    def tag(self, text: str) -> list[tuple[str, str]]:
        ids = [self.parameters.ids.get(character, self.parameters.ids[OOV]) for character in text.strip()]
        words: list[list[str]] = []
        previous = ""
        path = self.viterbi(self.emissions(ids)) if ids else []
        for number, tag in zip(ids, (self.parameters.tags[i] for i in path), strict=True):
            character = " " if self.characters[number] == OOV else self.characters[number]
            if not words or tag.endswith("-B") or (tag == "O" and previous != "O"):
                words.append([character, tag.split("-")[0]])
            else:
                words[-1][0] += character
            previous = tag
        return [(word, flag) for word, flag in words]
