"""What an image is: its tree as EROFS metadata, its chunks, its manifest (``docs/image-format.md``)."""
