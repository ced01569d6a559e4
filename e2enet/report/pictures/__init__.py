"""Pictures of a sweep: plots over its runs' tables, connections of the fusion grid, cases with their contours."""
