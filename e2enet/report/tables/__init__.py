"""Tables of the report: their content, how it is computed, and how it is written."""
