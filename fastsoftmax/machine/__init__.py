"""Machine code: where that of a kernel comes from, how it is made, and how it is called."""
