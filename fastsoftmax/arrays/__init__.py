"""From arrays of any layout to the blocks that kernels take, and back; options of losses, threads, long rows."""
