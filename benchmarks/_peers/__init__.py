"""What `peers.py` is made of: the job, its runs, and one file per framework."""
