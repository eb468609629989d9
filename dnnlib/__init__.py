"""Small things that every other package uses; imports nothing of this project."""

from .util import EasyDict, UserError, cache_dir, open_url

__all__ = ["EasyDict", "UserError", "cache_dir", "open_url"]
