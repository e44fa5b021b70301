"""Pictures inside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

# Wider ones are larger than any screen shows them, and a page of them cannot be mailed.
_MAX_WIDTH = 1800
_MAX_BYTES = 600_000


def embedded(path: str | Path) -> str | None:
    """A picture as the address of itself, or None if it cannot be read.

    Large files are scaled down and stored with loss.
    """
    try:
        content = Path(path).read_bytes()
        picture = Image.open(io.BytesIO(content))
        picture.load()
    except (OSError, SyntaxError):  # what PIL raises for broken PNG files
        return None
    kind = str(picture.format).lower()
    if len(content) > _MAX_BYTES or picture.width > _MAX_WIDTH:
        kind = 'jpeg'
        picture.thumbnail((_MAX_WIDTH, 10 * _MAX_WIDTH))
        stream = io.BytesIO()
        picture.convert('RGB').save(stream, 'JPEG', quality=88)
        content = stream.getvalue()
    return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'
