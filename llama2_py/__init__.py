"""The rooms of llama2.py: docs/architecture.md is their map."""
