"""One job on this machine, exactly as a pilot would run it, without a server."""
