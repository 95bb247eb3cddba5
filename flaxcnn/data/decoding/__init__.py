"""From encoded images to uint8 arrays, on the host and without JAX.

crops      decoding a part of an image, and scaling it
images     decoding a whole image
headers    format and size of an encoded image, before its pixels are decoded
exif       the EXIF orientation of an image
pil        opening images with PIL
errors     `BadImage`, the exception for images that cannot be used
messages   suppressing what decoders print about damaged images
"""
