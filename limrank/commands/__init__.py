"""Groups of commands of the command line, and commands with many options of their own."""
