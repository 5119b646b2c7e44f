"""Content-addressed stages: hashing, the checksummed cache, and the progress that a stage reports.

A stage's key is a mapping of everything its result depends on, the version of the code that makes it
included. Equal keys mean equal results, so a stage is computed once for a whole sweep, also by
several processes.
"""

from faqbench.stages.cache import (
    CacheEntry,
    StageCache,
    cache_root,
    find_damage,
    write_manifest,
)
from faqbench.stages.hashing import hash_file, hash_json, hash_text
from faqbench.stages.progress import PlainProgress, Progress

__all__ = [
    "CacheEntry",
    "PlainProgress",
    "Progress",
    "StageCache",
    "cache_root",
    "find_damage",
    "hash_file",
    "hash_json",
    "hash_text",
    "write_manifest",
]
