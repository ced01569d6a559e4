"""From raw images to prepared cases: crop, resample, normalise, store."""
