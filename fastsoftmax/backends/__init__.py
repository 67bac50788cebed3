"""Arrays that are not in memory: Dask's, and files."""
