"""The filesystem as a function: inodes, attributes, directories, and which frames a read needs. Pure, no I/O."""
