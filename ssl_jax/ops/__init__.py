"""Functions on arrays: losses, views, selection, convolutions; they import nothing of the library."""
