"""The parts of `soak.py`: its client, its servers and its relay, each in a process of its own, and the ledger."""
