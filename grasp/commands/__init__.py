"""What each command does, with one module per kind of work, so that a command loads little."""
