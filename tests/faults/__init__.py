"""The rows of docs/reliability.md at reduced counts."""
