"""The parts of `schedules.py`."""
