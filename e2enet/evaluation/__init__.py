"""Scores of predicted segmentations: Dice, NSD and HD95 per case and class, on the grid of the reference."""

from e2enet.evaluation.folder import score_files, score_folder, write_scores
from e2enet.evaluation.metrics import dice, hd95, nsd
from e2enet.evaluation.scores import Score, score_case, scores_table, summarise

__all__ = [
    "Score",
    "dice",
    "hd95",
    "nsd",
    "score_case",
    "score_files",
    "score_folder",
    "scores_table",
    "summarise",
    "write_scores",
]
