"""What each command does; a module for each kind of work, so that a command loads only its own."""
