"""The rooms of llama2.py: docs/architecture.md is their map."""

VERSION = "3.0.0"
