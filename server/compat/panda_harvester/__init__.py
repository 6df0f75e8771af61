"""PanDA's Harvester: jobs for its workers, what it reports of both, and what it is to do."""
