"""Stage 2, one file a defense."""
