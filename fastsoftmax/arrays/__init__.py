"""From any array to the blocks that kernels take, and back: layout, options, threads, rows that are cut."""
