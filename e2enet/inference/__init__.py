"""Prediction of whole scans: checkpoints, sliding windows, ensembles, results on the native grid.

Nothing is imported here, so that a wrong key of predict.py is reported without loading torch:
`checkpoint.load_model`, `sliding_window.predict_planes`, `predictor.predict_cases`, `run`.
"""
