"""The kernel's side: errno, replies, invalidation."""
