"""What the process needs: the disk cache, safe forks, the door to Numba's private interface."""
