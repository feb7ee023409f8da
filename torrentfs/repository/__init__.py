"""What is published: packs, manifests, metainfo, catalogs, the chain of trust and the publisher.

Network I/O is the caller's."""
