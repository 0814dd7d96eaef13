"""English and German text in Debian's packages."""
