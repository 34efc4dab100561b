"""Records, prompt templates, files, mixes and splits."""
