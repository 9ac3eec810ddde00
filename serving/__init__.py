"""Serving: Triton behind an HTTP gateway that classifies uploaded images."""
