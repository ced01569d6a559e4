"""Reports of finished and running trainings: tables, statistics, pictures, a live table and measured costs."""
