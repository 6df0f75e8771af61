"""``pilotage bench dispatch``: fills a database, starts a real server, drives it over HTTP, and reports what it measured."""
