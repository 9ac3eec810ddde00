"""The model repository: what a repository is, what is served from it, and every change of it."""
