"""Small things that all other packages use. It imports none of them."""

from .util import EasyDict, UserError, cache_dir, open_url

__all__ = ["EasyDict", "UserError", "cache_dir", "open_url"]
