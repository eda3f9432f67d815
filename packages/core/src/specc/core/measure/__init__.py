"""What a speculator does, counted and timed: in this process, at a server, under load."""
