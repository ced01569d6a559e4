"""What run and sweep folders hold, and what tells their jobs apart."""
