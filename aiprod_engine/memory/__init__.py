"""Where weights live: on the device while a phase needs them, else in the mapped file."""
