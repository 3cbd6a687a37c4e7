"""The commands: parse what was typed, call the library, print."""
