"""Real services for the tests: each is installed when missing, runs on loopback, and is stopped by its own pid."""
