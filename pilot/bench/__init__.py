"""``pilotage bench pilot``: starts a real server and real pilots on this machine, and reports what they add to a job."""
