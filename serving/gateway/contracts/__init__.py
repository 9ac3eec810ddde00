"""Contracts that other clients speak: thin layers that take pictures and give answers. All between is /classify's."""
