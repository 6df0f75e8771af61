"""Data Dispatcher: its data server and its authentication server, as ``ddisp`` knows them, over our projects."""
