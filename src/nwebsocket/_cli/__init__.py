"""The command `nwebsocket`, made of public names only."""
