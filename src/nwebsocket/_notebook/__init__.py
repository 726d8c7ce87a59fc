"""What a notebook shows of a socket."""
