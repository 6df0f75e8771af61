"""Credentials that harvester obtains, watches and renews ahead of time: tokens and proxies for batch systems and server."""
