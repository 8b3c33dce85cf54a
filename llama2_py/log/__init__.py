"""The log of a run: its lines, written, read, verified, proved and shown."""
