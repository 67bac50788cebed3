"""The public functions inside a user's own compiled code."""
