"""The options of `deit serve` and `deit triton`. Each is declared here, once, and checked once.

`deit/options.py` derives the command line and the environment variables: --max-images and DEIT_MAX_IMAGES.
"""
