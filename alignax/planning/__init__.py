"""What a config will take on machines that are not there: compiled, counted, and not run."""
