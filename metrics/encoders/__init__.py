"""Neural encoders for the metrics: texts (InfoSim, InfoDiverse), texts and stills (EMScore), frame features.

`text` and `clip` load models and bring in torch; this module and `frames` do not.
"""

BACKENDS = ("transformers", "cn_clip", "open_clip")
"""Packages that a CLIP model can be loaded with, by name."""
