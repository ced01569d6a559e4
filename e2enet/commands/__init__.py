"""The Hydra apps: training and prediction as they are typed."""
