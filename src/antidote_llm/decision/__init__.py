"""Is a repair needed, how strong, and was it worth it."""
