"""Data: raw datasets, geometry, planning, preparation, patches."""
