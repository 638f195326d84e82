"""Where a prompt goes, and why."""
