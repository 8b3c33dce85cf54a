"""A dispute between two logs of one run, settled without the model."""
