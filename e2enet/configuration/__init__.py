"""The config check of train.py: a rule for every key, and the check of a command line."""
