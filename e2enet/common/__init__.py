"""Shared by several packages: errors, files, the console, config checks."""
