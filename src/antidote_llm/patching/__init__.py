"""The reversible patch: write, apply, revert, diff."""
