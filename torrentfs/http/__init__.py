"""What is served over HTTP: static files of a repository, with byte ranges."""
