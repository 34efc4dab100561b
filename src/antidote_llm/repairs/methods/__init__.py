"""Repair methods, one a file."""
