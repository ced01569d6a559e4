"""The config check of e2enet train: a rule for every key, and the check of a command line."""
