"""What several rooms share: errors, files, the console, overlay pictures."""
