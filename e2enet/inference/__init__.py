"""Prediction of whole scans: checkpoints, sliding windows, ensembles, results on the native grid.

Start with `checkpoint.load_model`, `sliding_window.predict_planes`, `predictor.predict_cases` and `run`. Nothing is
imported here, so that a wrong key of e2enet predict is reported without loading torch.
"""
