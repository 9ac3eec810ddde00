"""Our own experiments, which the wheel leaves out. `python -m studies.NAME --help` describes each."""
