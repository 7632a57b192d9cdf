"""The libraries' own messages, kept out of the commands' (which speak of what the user asked for)."""

from __future__ import annotations

import os

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def quieten() -> None:
    """Set the libraries' environment variables, before they are imported; what the user has set stays."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
