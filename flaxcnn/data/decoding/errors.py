"""`BadImage`, the exception for images that cannot be used."""

# Maximum number of pixels of an image, because a file of a few kB can claim any size. This many pixels take 0.3 GB
# as RGB, and up to 0.9 GB in each worker while a progressive JPEG is decoded. Few cameras make larger images.
MAX_PIXELS = 100_000_000


class BadImage(Exception):
    """Raised for an image that cannot be used. The message is the reason in a few words, without the file name."""
