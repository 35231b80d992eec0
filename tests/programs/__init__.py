"""Programs that tests run: our own, compiled for every target, and those of third parties."""
