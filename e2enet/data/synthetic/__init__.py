"""Datasets that the project writes itself: the phantom, and small look-alikes of public datasets."""
