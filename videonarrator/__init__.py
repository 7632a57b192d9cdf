"""Narrations for product videos: a structured storyline, then one narration per clip, as long as the clip."""

from videonarrator.version import VERSION as __version__

__all__ = ["__version__"]
