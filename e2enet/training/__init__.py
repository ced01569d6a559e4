"""Training: loss, schedules, the Lightning module, the DSFF callback, config checks and the run itself."""
