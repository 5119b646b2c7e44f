"""Content-addressed stages: hashing, the checksummed cache, and the progress that a stage reports.

    manifest.py    a folder's key and checksums, and whether they still hold
    cache.py       getting a stage's entry, made once by whoever comes first
    inventory.py   listing, checking, evicting; what a running cell reads stays until the cell ends

A stage's key is a mapping of everything its result depends on, the version of the code that makes it
included. Equal keys mean equal results, so a stage is computed once for a whole sweep, also by
several processes.
"""

from faqbench.stages.cache import CacheEntry, PlainProgress, Progress, StageCache, StageUse, cache_root
from faqbench.stages.inventory import (
    ENVIRONMENTS,
    PACKAGES,
    StoredEntry,
    evict,
    find_damaged,
    list_entries,
    oldest_over,
    remove_entry,
    tidy,
)
from faqbench.stages.manifest import (
    SMALL_BYTES,
    file_version,
    find_damage,
    hash_file,
    hash_json,
    hash_text,
    library_version,
    write_manifest,
)

__all__ = [
    "ENVIRONMENTS",
    "PACKAGES",
    "SMALL_BYTES",
    "CacheEntry",
    "PlainProgress",
    "Progress",
    "StageCache",
    "StageUse",
    "StoredEntry",
    "cache_root",
    "evict",
    "file_version",
    "find_damage",
    "find_damaged",
    "hash_file",
    "hash_json",
    "hash_text",
    "library_version",
    "list_entries",
    "oldest_over",
    "remove_entry",
    "tidy",
    "write_manifest",
]
