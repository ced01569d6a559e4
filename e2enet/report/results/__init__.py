"""What runs came to, read from their folders."""
