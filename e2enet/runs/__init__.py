"""Read run and sweep folders, and tell their jobs apart."""
