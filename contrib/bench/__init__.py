"""The benchmark: what a job meets on a mount, beside ext4 in the same run (`python -m contrib.bench --help`).

Everything that is measured runs as a process of its own: the origin, the node, and each job.
"""
