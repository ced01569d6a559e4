"""From raw images to prepared cases: crop, normalise, resample, store."""
