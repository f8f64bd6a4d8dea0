"""Published checkpoints: reading them safely, their layouts as tables, where they are kept."""
