"""Atomic files and result folders, hashes, locks, the cache, and strict readers of untrusted files."""
