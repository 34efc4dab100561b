"""Stage 1, one file a defense."""
