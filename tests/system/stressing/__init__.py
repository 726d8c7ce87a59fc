"""The parts of `stress.py`: the server, what is watched on each socket, and what the threads do."""
