//! Forgeries by name: those that were found by hand, and those that take more than one field.
