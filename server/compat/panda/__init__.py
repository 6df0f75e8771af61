"""PanDA's pilots: their jobs, their reports, the data of queues and storages. Harvester's face uses the same words."""
