"""Where samples come from and in which order: sources, readers of what they have, and the stream of tasks."""
