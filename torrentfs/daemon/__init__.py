"""The processes: each module builds its parts in one nursery."""
