"""littlefs in a partition: of a file or a board, and files to and from it."""
