"""What the scripts and pipelines of both trees share: options, memory, files, endings."""
