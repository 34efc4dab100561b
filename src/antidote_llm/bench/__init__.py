"""Recipes: the three stages and their evaluation in one file, run as the commands themselves."""
