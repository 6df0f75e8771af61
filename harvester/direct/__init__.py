"""Direct jobs: people's own descriptions on an ARC CE, under their own proxies (``docs/adr/0012``)."""
