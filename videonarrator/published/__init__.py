"""The published system's own files: its base model, its checkpoints, its wording; read, and written back."""
