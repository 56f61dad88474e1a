"""Small made-up sets, one for each field of the gallery: every command can be tried offline, in seconds."""
