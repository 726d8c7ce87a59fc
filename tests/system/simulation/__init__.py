"""The library's threads under a scheduler of our own, which a seed decides. See `simulate.py`."""
