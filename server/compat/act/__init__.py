"""aCT's REST interface, as ``act`` 1.0 speaks it, over direct jobs."""
