"""Aligned text as Arrow files: what is stored, how it is written, and how training reads it."""

MANIFEST = "manifest.json"
