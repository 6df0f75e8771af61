"""Who calls: from a credential to a :class:`server.engine.access.Caller`."""
