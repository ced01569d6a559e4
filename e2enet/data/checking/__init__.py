"""The health of a raw dataset: every case checked, all problems in one report."""
