"""Measurements of a running server, kept as files."""
