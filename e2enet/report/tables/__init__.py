"""Tables of the report: what stands in them, how it is computed, and how it is written."""
