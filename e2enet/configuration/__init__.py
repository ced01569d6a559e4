"""The door of train.py: every key's rule, and the check of a command line."""
