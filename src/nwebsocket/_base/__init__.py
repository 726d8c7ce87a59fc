"""What every room uses: the clock, the log, numbers and names as people read them. It imports no other room."""
