"""Rivals of the methods here: each changes what D sees, or adds a term to the losses of D or G.

A new one is a class with the decorator `rival` in one of these files, and its row in `training.config.rivals`.
"""

from . import consistency, contrastive, inputs, reconstruction, scores, strength  # noqa: F401 - they enter their classes into RIVAL_CLASSES
from .base import RIVAL_CLASSES, Judge, Rival, Rivals, Term, WithClock, build_extras, rival

__all__ = ["RIVAL_CLASSES", "Judge", "Rival", "Rivals", "Term", "WithClock", "build_extras", "rival"]
