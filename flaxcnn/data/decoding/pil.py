"""Opening images of a known format with PIL, and converting its errors to `BadImage`."""

import contextlib
import io
from collections.abc import Iterator

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from flaxcnn.data.decoding.errors import MAX_PIXELS, BadImage

# PIL's readers by format. `Image.open` would try them in turn, and print warnings about large images.
_READERS = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "PNM": PpmImagePlugin.PpmImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}


def open_image(encoded: bytes, kind: str) -> Image.Image:
    """Opens an encoded image whose format is `kind`, such as "GIF", without decoding its pixels yet."""
    return _READERS[kind](io.BytesIO(encoded))


@contextlib.contextmanager
def errors_as_bad_image() -> Iterator[None]:
    """Context manager that re-raises errors from PIL as `BadImage`."""
    try:
        yield
    except (MemoryError, BadImage):  # too little memory is not the fault of the image
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"more than the {MAX_PIXELS:,} pixels that are accepted") from None
    except Exception as error:  # a damaged file may raise any exception in PIL
        raise BadImage("truncated" if "truncated" in str(error) else "cannot be decoded") from error
