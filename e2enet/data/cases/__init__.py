"""Which cases a dataset has, and which of them a run trains on, validates and tests."""
