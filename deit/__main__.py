"""`python -m deit`, so that `torchrun -m deit train ...` works."""

from deit.cli import main

main()
