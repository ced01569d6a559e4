"""The health of a raw dataset: every case looked through, all problems in one report."""
