"""Rivals: additions to a method. Each changes what D sees, or adds a term to the losses of D or G.

A new rival is a class with the decorator `rival` in one of these files, and a row in `training.config.rivals`.
"""

from . import consistency, contrastive, inputs, reconstruction, scores, strength  # noqa: F401 - to fill RIVAL_CLASSES
from .base import RIVAL_CLASSES, Judge, Rival, Rivals, Term, WithClock, build_extras, rival

__all__ = ["RIVAL_CLASSES", "Judge", "Rival", "Rivals", "Term", "WithClock", "build_extras", "rival"]
