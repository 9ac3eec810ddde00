"""The embedded Triton: the `tritonserver` of the PyPI wheel, run as a child process on loopback."""
